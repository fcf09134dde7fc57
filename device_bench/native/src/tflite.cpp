// LiteRT's compiled model on the CPU (XNNPACK inside libLiteRt.so).
//
// - Buffers come from the compiled model's requirements (alignment), and a run refuses one that is still locked.
// - A signature may order inputs otherwise than the file does; the file's order is the protocol's.
// - Without /sys/devices/system/cpu/{possible,present} XNNPACK finds no CPU and compiling fails with status 3.
#include <cstring>
#include <stdexcept>

#include "backend.hpp"
#include "job.hpp"
#include "litert_api.h"

namespace edgefold {

namespace {

void check(int status, const char *call) {
    if (status != 0)
        throw std::runtime_error(std::string(call) + " failed with status " + std::to_string(status));
}

#define CHECK(call) check((call), #call)

std::string name_of(int type) {
    switch (type) { // the numbers of TfLiteType
    case 1: return "float32";
    case 2: return "int32";
    case 3: return "uint8";
    case 4: return "int64";
    case 6: return "bool";
    case 7: return "int16";
    case 9: return "int8";
    case 10: return "float16";
    case 11: return "float64";
    default: throw std::runtime_error("the file has an input or output of type " + std::to_string(type) + ", which is not supported");
    }
}

struct Port {
    LiteRtTensorType type;
    Spec spec;
    size_t position; // in the signature
    LiteRtHandle buffer = nullptr;
};

class TfliteBackend : public Backend {
  public:
    TfliteBackend() { CHECK(LiteRtCreateEnvironment(0, nullptr, &environment_)); }

    ~TfliteBackend() override {
        for (auto *ports : {&inputs_, &outputs_})
            for (Port &port : *ports)
                if (port.buffer)
                    LiteRtDestroyTensorBuffer(port.buffer);
        if (compiled_)
            LiteRtDestroyCompiledModel(compiled_);
        if (options_)
            LiteRtDestroyOptions(options_);
        if (model_)
            LiteRtDestroyModel(model_);
        LiteRtDestroyEnvironment(environment_);
    }

    std::string runtime() const override { return "litert " EDGEFOLD_LITERT_VERSION; }

    void trace(const std::string &) override { tracing_ = true; }

    std::string traced() override {
        CHECK(LiteRtStopProfiler(profiler_));
        int count;
        CHECK(LiteRtGetNumProfilerEvents(profiler_, &count));
        std::vector<LiteRtEvent> events(static_cast<size_t>(count)), ops;
        CHECK(LiteRtGetProfilerEvents(profiler_, count, events.data()));
        for (const LiteRtEvent &event : events)
            if ((event.kind == LITERT_FILE_OP || event.kind == LITERT_DELEGATE_OP) && event.tag)
                ops.push_back(event);
        size_t number = runs_ ? ops.size() / runs_ : 0;
        if (number == 0 || number * runs_ != ops.size())
            throw std::runtime_error("LiteRT told " + std::to_string(ops.size()) + " ops in " + std::to_string(runs_) +
                                     " runs, which are not the same in each");
        std::string result;
        for (size_t i = 0; i < number; i++) {
            uint64_t total_us = 0; // the clock has steps of a microsecond: the mean says more than the median
            for (size_t at = i; at < ops.size(); at += number)
                total_us += ops[at].elapsed_us;
            std::string position = ops[i].kind == LITERT_FILE_OP ? std::to_string(ops[i].position) : "-1";
            result += (i ? "," : "") + ("{\"name\":" + quoted(ops[i].tag)) + ",\"op\":" + quoted(ops[i].tag) + ",\"position\":" + position +
                      ",\"ns\":" + std::to_string(1000 * total_us / runs_) + "}";
        }
        return "\"ops\":[" + result + "]";
    }

    void load(const std::string &path, int threads) override {
        CHECK(LiteRtCreateModelFromFile(environment_, path.c_str(), &model_));
        CHECK(LiteRtCreateOptions(&options_));
        CHECK(LiteRtSetOptionsHardwareAccelerators(options_, LITERT_ACCELERATOR_CPU));
        add_options("xnnpack", "num_threads = " + std::to_string(threads) + "\n");
        if (tracing_)
            add_options("runtime_options_string", "enable_profiling = true\n");
        CHECK(LiteRtCreateCompiledModel(environment_, model_, options_, &compiled_));
        if (tracing_) {
            CHECK(LiteRtCompiledModelGetProfiler(compiled_, &profiler_));
            CHECK(LiteRtStartProfiler(profiler_));
        }

        LiteRtHandle signature, subgraph;
        CHECK(LiteRtGetModelSignature(model_, 0, &signature));
        CHECK(LiteRtGetSignatureSubgraph(signature, &subgraph));
        size_t count;
        CHECK(LiteRtGetNumSubgraphInputs(subgraph, &count));
        for (size_t i = 0; i < count; i++) {
            LiteRtHandle tensor, requirements;
            CHECK(LiteRtGetSubgraphInput(subgraph, i, &tensor));
            Port port = described(tensor);
            port.position = position(count, tensor, [&](size_t at, LiteRtHandle *found) {
                CHECK(LiteRtGetSignatureInputTensorByIndex(signature, at, found));
            });
            CHECK(LiteRtGetCompiledModelInputBufferRequirements(compiled_, 0, port.position, &requirements));
            CHECK(LiteRtCreateManagedTensorBufferFromRequirements(environment_, &port.type, requirements, &port.buffer));
            inputs_.push_back(port);
        }
        CHECK(LiteRtGetNumSubgraphOutputs(subgraph, &count));
        for (size_t i = 0; i < count; i++) {
            LiteRtHandle tensor, requirements;
            CHECK(LiteRtGetSubgraphOutput(subgraph, i, &tensor));
            Port port = described(tensor);
            port.position = position(count, tensor, [&](size_t at, LiteRtHandle *found) {
                CHECK(LiteRtGetSignatureOutputTensorByIndex(signature, at, found));
            });
            CHECK(LiteRtGetCompiledModelOutputBufferRequirements(compiled_, 0, port.position, &requirements));
            CHECK(LiteRtCreateManagedTensorBufferFromRequirements(environment_, &port.type, requirements, &port.buffer));
            outputs_.push_back(port);
        }
        input_buffers_ = in_signature_order(inputs_);
        output_buffers_ = in_signature_order(outputs_);
    }

    std::vector<Spec> inputs() const override { return specs(inputs_); }
    std::vector<Spec> outputs() const override { return specs(outputs_); }

    void bind(std::vector<Array> &arrays) override {
        for (size_t i = 0; i < arrays.size(); i++) {
            void *data;
            CHECK(LiteRtLockTensorBuffer(inputs_[i].buffer, &data, LITERT_LOCK_WRITE));
            std::memcpy(data, arrays[i].data.data(), arrays[i].data.size());
            CHECK(LiteRtUnlockTensorBuffer(inputs_[i].buffer));
        }
    }

    void invoke() override {
        runs_++;
        CHECK(LiteRtRunCompiledModel(compiled_, 0, input_buffers_.size(), input_buffers_.data(), output_buffers_.size(),
                                     output_buffers_.data()));
    }

    std::vector<Array> results() override {
        std::vector<Array> arrays;
        for (Port &port : outputs_) {
            Array array{port.spec.dtype, port.spec.shape, {}};
            array.data.resize(array.count() * size_of(array.dtype));
            void *data;
            CHECK(LiteRtLockTensorBuffer(port.buffer, &data, LITERT_LOCK_READ));
            std::memcpy(array.data.data(), data, array.data.size());
            CHECK(LiteRtUnlockTensorBuffer(port.buffer));
            arrays.push_back(std::move(array));
        }
        return arrays;
    }

  private:
    void add_options(const char *name, const std::string &text) {
        char *payload = new char[text.size() + 1];
        std::memcpy(payload, text.c_str(), text.size() + 1);
        LiteRtHandle made;
        CHECK(LiteRtCreateOpaqueOptions(name, payload, [](void *data) { delete[] static_cast<char *>(data); }, &made));
        CHECK(LiteRtAddOpaqueOptions(options_, made));
    }

    Port described(LiteRtHandle tensor) const {
        const char *name;
        int kind;
        CHECK(LiteRtGetTensorName(tensor, &name));
        CHECK(LiteRtGetTensorTypeId(tensor, &kind));
        if (kind != LITERT_RANKED)
            throw std::runtime_error(std::string("'") + name + "' has no fixed rank");
        Port port{};
        CHECK(LiteRtGetRankedTensorType(tensor, &port.type));
        size_t rank = port.type.rank_and_flags & 0x7F;
        for (size_t axis = 0; axis < rank && axis < 8; axis++) {
            if (port.type.dimensions[axis] < 0)
                throw std::runtime_error(std::string("'") + name + "' has a dynamic shape, which this runner does not take");
            port.spec.shape.push_back(port.type.dimensions[axis]);
        }
        port.spec.name = name;
        port.spec.dtype = name_of(port.type.element_type);
        return port;
    }

    template <typename Get> static size_t position(size_t count, LiteRtHandle tensor, Get get) {
        for (size_t at = 0; at < count; at++) {
            LiteRtHandle found;
            get(at, &found);
            if (found == tensor)
                return at;
        }
        throw std::runtime_error("the file's signature does not name all inputs and outputs");
    }

    static std::vector<LiteRtHandle> in_signature_order(const std::vector<Port> &ports) {
        std::vector<LiteRtHandle> buffers(ports.size());
        for (const Port &port : ports)
            buffers[port.position] = port.buffer;
        return buffers;
    }

    static std::vector<Spec> specs(const std::vector<Port> &ports) {
        std::vector<Spec> result;
        for (const Port &port : ports)
            result.push_back(port.spec);
        return result;
    }

    LiteRtHandle environment_ = nullptr, model_ = nullptr, options_ = nullptr, compiled_ = nullptr, profiler_ = nullptr;
    bool tracing_ = false;
    size_t runs_ = 0;
    std::vector<Port> inputs_, outputs_;
    std::vector<LiteRtHandle> input_buffers_, output_buffers_;
};

} // namespace

std::unique_ptr<Backend> make_backend() {
    return std::make_unique<TfliteBackend>();
}

} // namespace edgefold
