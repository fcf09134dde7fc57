// ONNX Runtime through its C API. Every call but GetApi returns a status, null for success.
#include <onnxruntime_c_api.h>

#include <cstring>
#include <stdexcept>

#include "backend.hpp"
#include "job.hpp"

namespace edgefold {

namespace {

// The oldest API with every call below: the header is of another release than the library, which knows its own and older ones.
constexpr uint32_t api_version = 17;

const char *name_of(ONNXTensorElementDataType type) {
    switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return "float32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return "float64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return "float16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8: return "int8";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8: return "uint8";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16: return "int16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return "int32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return "int64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL: return "bool";
    default: throw std::runtime_error("the file has an input or output of a type that is not supported");
    }
}

ONNXTensorElementDataType type_of(const std::string &name) {
    for (int type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; type <= ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE; type++) {
        if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16)
            continue;
        if (name == name_of(static_cast<ONNXTensorElementDataType>(type)))
            return static_cast<ONNXTensorElementDataType>(type);
    }
    throw std::runtime_error("type " + name + " is not supported");
}

class OnnxBackend : public Backend {
  public:
    OnnxBackend() : api_(OrtGetApiBase()->GetApi(api_version)) {
        if (!api_)
            throw std::runtime_error("this ONNX Runtime is older than the runner's API");
        check(api_->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "edgefold", &env_));
        check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
        check(api_->GetAllocatorWithDefaultOptions(&allocator_));
    }

    ~OnnxBackend() override {
        release(values_);
        release(outputs_);
        api_->ReleaseMemoryInfo(memory_);
        if (session_)
            api_->ReleaseSession(session_);
        api_->ReleaseEnv(env_);
    }

    std::string runtime() const override { return std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString(); }

    void trace(const std::string &stem) override { trace_ = stem; }

    std::string traced() override {
        char *name;
        check(api_->SessionEndProfiling(session_, allocator_, &name));
        std::string path = name;
        check(api_->AllocatorFree(allocator_, name));
        return "\"ort_trace\":" + quoted(path.substr(path.rfind('/') + 1));
    }

    void load(const std::string &path, int threads) override {
        OrtSessionOptions *options;
        check(api_->CreateSessionOptions(&options));
        if (!trace_.empty())
            check(api_->EnableProfiling(options, trace_.c_str()));
        check(api_->SetIntraOpNumThreads(options, threads));
        check(api_->SetInterOpNumThreads(options, 1));
        OrtStatus *status = api_->CreateSession(env_, path.c_str(), options, &session_);
        api_->ReleaseSessionOptions(options);
        check(status);
        size_t inputs, outputs;
        check(api_->SessionGetInputCount(session_, &inputs));
        check(api_->SessionGetOutputCount(session_, &outputs));
        for (size_t i = 0; i < inputs; i++) {
            OrtTypeInfo *info;
            char *name;
            check(api_->SessionGetInputTypeInfo(session_, i, &info));
            check(api_->SessionGetInputName(session_, i, allocator_, &name));
            inputs_specs_.push_back(spec(info, name));
        }
        for (size_t i = 0; i < outputs; i++) {
            OrtTypeInfo *info;
            char *name;
            check(api_->SessionGetOutputTypeInfo(session_, i, &info));
            check(api_->SessionGetOutputName(session_, i, allocator_, &name));
            outputs_specs_.push_back(spec(info, name));
        }
        for (const Spec &each : inputs_specs_)
            input_names_.push_back(each.name.c_str());
        for (const Spec &each : outputs_specs_)
            output_names_.push_back(each.name.c_str());
        outputs_.assign(outputs, nullptr);
    }

    std::vector<Spec> inputs() const override { return inputs_specs_; }
    std::vector<Spec> outputs() const override { return outputs_specs_; }

    void bind(std::vector<Array> &arrays) override {
        release(values_);
        for (Array &array : arrays) {
            OrtValue *value; // borrows the array's memory
            check(api_->CreateTensorWithDataAsOrtValue(memory_, array.data.data(), array.data.size(), array.shape.data(),
                                                       array.shape.size(), type_of(array.dtype), &value));
            values_.push_back(value);
        }
        size_t count = outputs_.size();
        release(outputs_);
        outputs_.assign(count, nullptr); // null: allocated by the run
    }

    void invoke() override {
        check(api_->Run(session_, nullptr, input_names_.data(), values_.data(), values_.size(), output_names_.data(),
                        output_names_.size(), outputs_.data()));
    }

    std::vector<Array> results() override {
        std::vector<Array> arrays;
        for (OrtValue *output : outputs_) {
            OrtTensorTypeAndShapeInfo *info;
            check(api_->GetTensorTypeAndShape(output, &info));
            Array array = described(info);
            api_->ReleaseTensorTypeAndShapeInfo(info);
            void *data;
            check(api_->GetTensorMutableData(output, &data));
            array.data.resize(array.count() * size_of(array.dtype));
            std::memcpy(array.data.data(), data, array.data.size());
            arrays.push_back(std::move(array));
        }
        return arrays;
    }

  private:
    void check(OrtStatus *status) const {
        if (!status)
            return;
        std::string message = api_->GetErrorMessage(status);
        api_->ReleaseStatus(status);
        throw std::runtime_error(message);
    }

    Array described(const OrtTensorTypeAndShapeInfo *info) const {
        ONNXTensorElementDataType type;
        size_t rank;
        check(api_->GetTensorElementType(info, &type));
        check(api_->GetDimensionsCount(info, &rank));
        Array array{name_of(type), std::vector<int64_t>(rank), {}};
        check(api_->GetDimensions(info, array.shape.data(), rank));
        return array;
    }

    Spec spec(OrtTypeInfo *info, char *name) const {
        const OrtTensorTypeAndShapeInfo *tensor;
        check(api_->CastTypeInfoToTensorInfo(info, &tensor));
        if (!tensor)
            throw std::runtime_error(std::string("'") + name + "' is not a tensor");
        Array array = described(tensor);
        Spec result{name, array.shape, array.dtype};
        api_->ReleaseTypeInfo(info);
        check(api_->AllocatorFree(allocator_, name));
        return result;
    }

    void release(std::vector<OrtValue *> &values) const {
        for (OrtValue *value : values)
            if (value)
                api_->ReleaseValue(value);
        values.clear();
    }

    const OrtApi *api_;
    OrtEnv *env_ = nullptr;
    OrtMemoryInfo *memory_ = nullptr;
    OrtAllocator *allocator_ = nullptr;
    OrtSession *session_ = nullptr;
    std::string trace_;
    std::vector<Spec> inputs_specs_, outputs_specs_;
    std::vector<const char *> input_names_, output_names_;
    std::vector<OrtValue *> values_, outputs_;
};

} // namespace

std::unique_ptr<Backend> make_backend() {
    return std::make_unique<OnnxBackend>();
}

} // namespace edgefold
