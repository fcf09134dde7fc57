/* The calls of LiteRT's C API that the runner makes, as libLiteRt.so 2.3 has them; its wheel brings no headers. Each returns a
 * status, 0 for success. */
#ifndef EDGEFOLD_LITERT_API_H
#define EDGEFOLD_LITERT_API_H
#include <stddef.h>
#include <stdint.h>

typedef void *LiteRtHandle;

/* Element type, rank in the low seven bits, eight dimensions, eight strides; only the first two and the dimensions are read. */
typedef struct {
    int32_t element_type;
    uint32_t rank_and_flags;
    int32_t dimensions[8];
    uint32_t strides[8];
} LiteRtTensorType;

enum { LITERT_ACCELERATOR_CPU = 1, LITERT_LOCK_READ = 0, LITERT_LOCK_WRITE = 1, LITERT_RANKED = 0 };

/* An event of the profiler. The kinds that are ops: of the file (position is that in it), and inside a delegate. */
typedef struct {
    const char *tag;
    int kind;
    uint64_t start_us, elapsed_us;
    size_t memory[6];
    uint64_t position, more;
    int source;
} LiteRtEvent;

enum { LITERT_FILE_OP = 2, LITERT_DELEGATE_OP = 8 };

extern "C" {
int LiteRtCreateEnvironment(int option_count, const void *options, LiteRtHandle *environment);
int LiteRtCreateModelFromFile(LiteRtHandle environment, const char *path, LiteRtHandle *model);
int LiteRtCreateOptions(LiteRtHandle *options);
int LiteRtSetOptionsHardwareAccelerators(LiteRtHandle options, int accelerators);
int LiteRtCreateOpaqueOptions(const char *identifier, void *payload, void (*destroy)(void *), LiteRtHandle *options);
int LiteRtAddOpaqueOptions(LiteRtHandle options, LiteRtHandle opaque);
int LiteRtCreateCompiledModel(LiteRtHandle environment, LiteRtHandle model, LiteRtHandle options, LiteRtHandle *compiled);
int LiteRtGetModelSignature(LiteRtHandle model, size_t index, LiteRtHandle *signature);
int LiteRtGetSignatureSubgraph(LiteRtHandle signature, LiteRtHandle *subgraph);
int LiteRtGetNumSubgraphInputs(LiteRtHandle subgraph, size_t *count);
int LiteRtGetNumSubgraphOutputs(LiteRtHandle subgraph, size_t *count);
int LiteRtGetSubgraphInput(LiteRtHandle subgraph, size_t index, LiteRtHandle *tensor);
int LiteRtGetSubgraphOutput(LiteRtHandle subgraph, size_t index, LiteRtHandle *tensor);
int LiteRtGetSignatureInputTensorByIndex(LiteRtHandle signature, size_t index, LiteRtHandle *tensor);
int LiteRtGetSignatureOutputTensorByIndex(LiteRtHandle signature, size_t index, LiteRtHandle *tensor);
int LiteRtGetTensorName(LiteRtHandle tensor, const char **name);
int LiteRtGetTensorTypeId(LiteRtHandle tensor, int *type_id);
int LiteRtGetRankedTensorType(LiteRtHandle tensor, LiteRtTensorType *type);
int LiteRtGetCompiledModelInputBufferRequirements(LiteRtHandle compiled, size_t signature, size_t index, LiteRtHandle *result);
int LiteRtGetCompiledModelOutputBufferRequirements(LiteRtHandle compiled, size_t signature, size_t index, LiteRtHandle *result);
int LiteRtCreateManagedTensorBufferFromRequirements(LiteRtHandle environment, const LiteRtTensorType *type,
                                                    LiteRtHandle requirements, LiteRtHandle *buffer);
int LiteRtLockTensorBuffer(LiteRtHandle buffer, void **data, int mode);
int LiteRtUnlockTensorBuffer(LiteRtHandle buffer);
int LiteRtRunCompiledModel(LiteRtHandle compiled, size_t signature, size_t input_count, LiteRtHandle *inputs,
                           size_t output_count, LiteRtHandle *outputs);
int LiteRtCompiledModelGetProfiler(LiteRtHandle compiled, LiteRtHandle *profiler);
int LiteRtStartProfiler(LiteRtHandle profiler);
int LiteRtStopProfiler(LiteRtHandle profiler);
int LiteRtGetNumProfilerEvents(LiteRtHandle profiler, int *count);
int LiteRtGetProfilerEvents(LiteRtHandle profiler, int count, LiteRtEvent *events);
void LiteRtDestroyTensorBuffer(LiteRtHandle buffer);
void LiteRtDestroyCompiledModel(LiteRtHandle compiled);
void LiteRtDestroyOptions(LiteRtHandle options);
void LiteRtDestroyModel(LiteRtHandle model);
void LiteRtDestroyEnvironment(LiteRtHandle environment);
}
#endif
