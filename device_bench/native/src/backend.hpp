// One runtime with one model. A program defines make_backend(); everything else is the same for all (worker.cpp).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "npy.hpp"

namespace edgefold {

struct Spec {
    std::string name;
    std::vector<std::int64_t> shape; // -1: dynamic
    std::string dtype;               // numpy's name
};

// Every method throws std::runtime_error with the runtime's own reason.
class Backend {
  public:
    virtual ~Backend() = default;
    virtual std::string runtime() const = 0; // "onnxruntime 1.32.0"
    // Before load: the times of ops are to be kept, in files whose names begin with this.
    virtual void trace(const std::string &stem) = 0;
    // After the runs: those times as a member of the answer, `"ops":[...]` or the name of a file.
    virtual std::string traced() = 0;
    virtual void load(const std::string &path, int threads) = 0;
    virtual std::vector<Spec> inputs() const = 0;
    virtual std::vector<Spec> outputs() const = 0;
    // Sets the inputs of the next run; the arrays live until it is over.
    virtual void bind(std::vector<Array> &inputs) = 0;
    virtual void invoke() = 0;
    virtual std::vector<Array> results() = 0;
};

std::unique_ptr<Backend> make_backend();

} // namespace edgefold
