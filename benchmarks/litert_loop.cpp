// The least that can run a .tflite file: LiteRT's C API, one thread, one input and one output, a clock around each run.
//
//     litert_loop MODEL WARM_UP RUNS     prints the median of RUNS runs in ns, after WARM_UP others
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "litert_api.h"

#define CHECK(call) \
    do { \
        if (int status = (call)) { \
            std::fprintf(stderr, "%s failed with status %d\n", #call, status); \
            std::exit(1); \
        } \
    } while (0)

static LiteRtHandle environment, model, options, compiled;

// The first input or output with its memory.
static LiteRtHandle buffer(bool is_input, size_t *bytes) {
    LiteRtHandle signature, tensor, requirements, made;
    LiteRtTensorType type;
    CHECK(LiteRtGetModelSignature(model, 0, &signature));
    CHECK(is_input ? LiteRtGetSignatureInputTensorByIndex(signature, 0, &tensor)
                   : LiteRtGetSignatureOutputTensorByIndex(signature, 0, &tensor));
    CHECK(LiteRtGetRankedTensorType(tensor, &type));
    CHECK(is_input ? LiteRtGetCompiledModelInputBufferRequirements(compiled, 0, 0, &requirements)
                   : LiteRtGetCompiledModelOutputBufferRequirements(compiled, 0, 0, &requirements));
    CHECK(LiteRtCreateManagedTensorBufferFromRequirements(environment, &type, requirements, &made));
    *bytes = sizeof(float);
    for (unsigned axis = 0; axis < (type.rank_and_flags & 0x7F); axis++)
        *bytes *= type.dimensions[axis];
    return made;
}

int main(int count, char **words) {
    if (count != 4)
        return 2;
    static char threads[] = "num_threads = 1\n";
    LiteRtHandle own;
    CHECK(LiteRtCreateEnvironment(0, nullptr, &environment));
    CHECK(LiteRtCreateModelFromFile(environment, words[1], &model));
    CHECK(LiteRtCreateOptions(&options));
    CHECK(LiteRtSetOptionsHardwareAccelerators(options, LITERT_ACCELERATOR_CPU));
    CHECK(LiteRtCreateOpaqueOptions("xnnpack", threads, [](void *) {}, &own));
    CHECK(LiteRtAddOpaqueOptions(options, own));
    CHECK(LiteRtCreateCompiledModel(environment, model, options, &compiled));
    size_t bytes, unused;
    LiteRtHandle input = buffer(true, &bytes), output = buffer(false, &unused);
    void *data;
    CHECK(LiteRtLockTensorBuffer(input, &data, LITERT_LOCK_WRITE));
    std::vector<float> values(bytes / sizeof(float));
    for (float &value : values)
        value = static_cast<float>(std::rand()) / RAND_MAX - 0.5f;
    std::memcpy(data, values.data(), bytes);
    CHECK(LiteRtUnlockTensorBuffer(input));
    std::vector<long> times;
    for (int run = -std::atoi(words[2]); run < std::atoi(words[3]); run++) {
        auto start = std::chrono::steady_clock::now();
        CHECK(LiteRtRunCompiledModel(compiled, 0, 1, &input, 1, &output));
        auto end = std::chrono::steady_clock::now();
        if (run >= 0)
            times.push_back(std::chrono::duration_cast<std::chrono::nanoseconds>(end - start).count());
    }
    std::sort(times.begin(), times.end());
    std::printf("%ld\n", times[times.size() / 2]);
}
