// ExecuTorch: method "forward" of a program.
//
// - The libraries are C++ with libstdc++'s ABI: g++ 12 works, a compiler that brings libc++ does not.
// - The thread pool has a thread a core from the start. Its reset comes before load_method: the delegate keeps the pool it finds. The
//   wheel has no header for it, so it is declared here.
// - Loader, program, planned buffers and method each outlive the next.
// - Without /sys/devices/system/cpu/{possible,present} XNNPACK is not available (error 0x20).
#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/data_loader/file_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <list>
#include <optional>
#include <stdexcept>

#include "backend.hpp"
#include "job.hpp"

namespace executorch::extension::threadpool {
class ThreadPool {
  public:
    bool _unsafe_reset_threadpool(uint32_t thread_count);
};
ThreadPool *get_threadpool();
} // namespace executorch::extension::threadpool

namespace edgefold {

namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::FileDataLoader;
using executorch::extension::MallocMemoryAllocator;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::HierarchicalAllocator;
using executorch::runtime::MemoryManager;
using executorch::runtime::Method;
using executorch::runtime::Program;
using executorch::runtime::Span;
using executorch::runtime::TensorInfo;

void check(Error error, const char *what) {
    if (error == Error::Ok)
        return;
    char text[96];
    std::snprintf(text, sizeof text, "%s failed with error 0x%x", what, static_cast<unsigned>(error));
    throw std::runtime_error(text);
}

const char *name_of(ScalarType type) {
    switch (type) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Half: return "float16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Bool: return "bool";
    default: throw std::runtime_error("the file has an input or output of a type that is not supported");
    }
}

// What a tensor needs besides its data, at an address that does not move.
struct Input {
    ScalarType type;
    std::vector<TensorImpl::SizesType> sizes;
    std::vector<TensorImpl::DimOrderType> order;
};

class ExecutorchBackend : public Backend {
  public:
    ExecutorchBackend() { executorch::runtime::runtime_init(); }

    std::string runtime() const override { return "executorch " EDGEFOLD_EXECUTORCH_VERSION; }

    void trace(const std::string &stem) override {
        dump_ = stem + ".etdp";
        tracer_.emplace();
    }

    std::string traced() override {
        auto data = tracer_->get_etdump_data();
        std::ofstream file(dump_, std::ios::binary);
        file.write(static_cast<const char *>(data.buf), static_cast<std::streamsize>(data.size));
        std::free(data.buf);
        if (!file.flush())
            throw std::runtime_error("cannot write " + dump_);
        return "\"etdump\":" + quoted(dump_.substr(dump_.rfind('/') + 1));
    }

    void load(const std::string &path, int threads) override {
        executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(static_cast<uint32_t>(threads));
        auto loader = FileDataLoader::from(path.c_str());
        check(loader.error(), "opening the file");
        loader_.emplace(std::move(loader.get()));
        auto program = Program::load(&*loader_);
        check(program.error(), "Program::load");
        program_.emplace(std::move(program.get()));
        auto meta = program_->method_meta("forward");
        check(meta.error(), "method_meta of 'forward'");
        for (size_t i = 0; i < meta->num_memory_planned_buffers(); i++) {
            auto bytes = static_cast<size_t>(meta->memory_planned_buffer_size(i).get());
            planned_.emplace_back(bytes);
            spans_.push_back({planned_.back().data(), bytes});
        }
        planned_memory_.emplace(Span<Span<uint8_t>>(spans_.data(), spans_.size()));
        manager_.emplace(&method_memory_, &*planned_memory_, &temporary_memory_);
        auto method = program_->load_method("forward", &*manager_, tracer_ ? &*tracer_ : nullptr);
        check(method.error(), "load_method");
        method_.emplace(std::move(method.get()));
        for (size_t i = 0; i < meta->num_inputs(); i++) {
            auto info = meta->input_tensor_meta(i);
            check(info.error(), "an input that is not a tensor");
            inputs_.push_back({info->scalar_type(), {info->sizes().begin(), info->sizes().end()}, {info->dim_order().begin(), info->dim_order().end()}});
            input_specs_.push_back(spec("input_" + std::to_string(i), *info));
        }
        for (size_t i = 0; i < meta->num_outputs(); i++) {
            auto info = meta->output_tensor_meta(i);
            check(info.error(), "an output that is not a tensor");
            output_specs_.push_back(spec("output_" + std::to_string(i), *info));
        }
    }

    std::vector<Spec> inputs() const override { return input_specs_; }
    std::vector<Spec> outputs() const override { return output_specs_; }

    void bind(std::vector<Array> &arrays) override {
        size_t i = 0;
        for (Input &input : inputs_) {
            TensorImpl impl(input.type, static_cast<ssize_t>(input.sizes.size()), input.sizes.data(), arrays[i].data.data(), input.order.data());
            check(method_->set_input(EValue(Tensor(&impl)), i), "set_input");
            i++;
        }
    }

    void invoke() override { check(method_->execute(), "execute"); }

    std::vector<Array> results() override {
        std::vector<Array> arrays;
        for (size_t i = 0; i < output_specs_.size(); i++) {
            const Tensor &tensor = method_->get_output(i).toTensor();
            Array array{name_of(tensor.scalar_type()), {tensor.sizes().begin(), tensor.sizes().end()}, {}};
            array.data.resize(tensor.nbytes());
            std::memcpy(array.data.data(), tensor.const_data_ptr(), array.data.size());
            arrays.push_back(std::move(array));
        }
        return arrays;
    }

  private:
    static Spec spec(const std::string &name, const TensorInfo &info) {
        return {name, {info.sizes().begin(), info.sizes().end()}, name_of(info.scalar_type())};
    }

    std::string dump_;
    std::optional<executorch::etdump::ETDumpGen> tracer_;
    std::optional<FileDataLoader> loader_;
    std::optional<Program> program_;
    std::list<std::vector<uint8_t>> planned_;
    std::vector<Span<uint8_t>> spans_;
    std::optional<HierarchicalAllocator> planned_memory_;
    MallocMemoryAllocator method_memory_, temporary_memory_;
    std::optional<MemoryManager> manager_;
    std::optional<Method> method_;
    std::list<Input> inputs_;
    std::vector<Spec> input_specs_, output_specs_;
};

} // namespace

std::unique_ptr<Backend> make_backend() {
    return std::make_unique<ExecutorchBackend>();
}

} // namespace edgefold
