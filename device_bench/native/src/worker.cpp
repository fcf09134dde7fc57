// Answers one job: PROGRAM JOB.json. The protocol, the modes and the warm-up are those of src/edgefold/runtime/worker.py (it takes no
// second job), with one mode more: "count" runs a fixed number of times between markers that the instruction counter sees (prctl with an unknown number).
#include <sched.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "backend.hpp"
#include "job.hpp"
#include "roofline.hpp"

namespace edgefold {

namespace {

constexpr double fast_rate = 0.1, slow_rate = 0.005, tolerance = 0.04;
constexpr int agreeing_samples = 40;
constexpr std::size_t recent_samples = 5;
constexpr double warmup_s = 3.0;
constexpr std::size_t warmup_samples = 60;
constexpr int memory_runs = 8, profile_runs = 30;
constexpr unsigned long marker = 0x45444745; // "EDGE"

using Clock = std::chrono::steady_clock;
using Nanoseconds = std::vector<std::int64_t>;

// The job does not fit the file.
struct JobError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The device has no such cores, or does not let this process run on them.
struct CoresError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

template <typename Call> std::int64_t timed(Call call) {
    auto start = Clock::now();
    call();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

class WarmUp {
  public:
    bool add(std::int64_t sample_ns) {
        if (recent_.size() == recent_samples)
            recent_.erase(recent_.begin());
        recent_.push_back(sample_ns);
        Nanoseconds sorted = recent_;
        std::sort(sorted.begin(), sorted.end());
        auto sample = static_cast<double>(sorted[sorted.size() / 2]);
        if (slow_ == 0)
            fast_ = slow_ = sample;
        sample = std::min(sample, 2 * slow_);
        fast_ += fast_rate * (sample - fast_);
        slow_ += slow_rate * (sample - slow_);
        agreeing_ = std::abs(fast_ / std::max(slow_, 1.0) - 1) <= tolerance ? agreeing_ + 1 : 0;
        return agreeing_ >= agreeing_samples;
    }

  private:
    Nanoseconds recent_;
    double fast_ = 0, slow_ = 0;
    int agreeing_ = 0;
};

// A field of a file in /proc in bytes; 0 where it is missing.
long proc_bytes(const char *path, const char *key) {
    std::ifstream file(path);
    std::string line;
    while (std::getline(file, line))
        if (line.rfind(key, 0) == 0)
            return std::atol(line.c_str() + std::strlen(key)) * 1024;
    return 0;
}

// The cores that this process may run on; none where the kernel does not tell.
std::vector<int> affinity() {
    cpu_set_t set;
    CPU_ZERO(&set);
    std::vector<int> cores;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (int core = 0; core < CPU_SETSIZE; core++)
            if (CPU_ISSET(core, &set))
                cores.push_back(core);
    return cores;
}

void pin(const std::vector<int> &cores) {
    if (cores.empty())
        return;
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int core : cores)
        CPU_SET(core, &set);
    bool taken = sched_setaffinity(0, sizeof set, &set) == 0;
    std::vector<int> found = affinity();
    for (int core : cores)
        // The kernel takes those that there are of a list.
        if (!taken || std::find(found.begin(), found.end(), core) == found.end())
            throw CoresError("core " + std::to_string(core) + " cannot be used: the device has cores 0-" +
                             std::to_string(sysconf(_SC_NPROCESSORS_CONF) - 1) + "; choose others, or none");
}

std::string list(const std::vector<std::string> &items) {
    std::string result = "[";
    for (const std::string &item : items)
        result += (result.size() > 1 ? "," : "") + item;
    return result + "]";
}

std::string list(const Nanoseconds &items) {
    std::vector<std::string> words;
    for (std::int64_t item : items)
        words.push_back(std::to_string(item));
    return list(words);
}

std::string list(const std::vector<Spec> &specs) {
    std::vector<std::string> words;
    for (const Spec &spec : specs)
        words.push_back("{\"name\":" + quoted(spec.name) + ",\"dtype\":" + quoted(spec.dtype) + ",\"shape\":" + list(spec.shape) + "}");
    return list(words);
}

void check(const std::vector<Spec> &specs, const std::vector<Array> &arrays) {
    if (specs.size() != arrays.size())
        throw JobError(std::to_string(arrays.size()) + " inputs given, the file has " + std::to_string(specs.size()));
    for (std::size_t i = 0; i < specs.size(); i++) {
        const Spec &spec = specs[i];
        const Array &array = arrays[i];
        bool fits = array.dtype == spec.dtype && array.shape.size() == spec.shape.size() + 1;
        for (std::size_t axis = 0; fits && axis < spec.shape.size(); axis++)
            fits = spec.shape[axis] < 0 || spec.shape[axis] == array.shape[axis + 1];
        if (!fits)
            throw JobError("input '" + spec.name + "' is " + array.dtype + " " + list(array.shape) + " with the samples first, the file wants " +
                           spec.dtype + " " + list(spec.shape));
    }
}

std::vector<Array> sample(const std::vector<Array> &arrays, std::size_t index) {
    std::vector<Array> result;
    for (const Array &array : arrays)
        result.push_back(array.at(index));
    return result;
}

// Appends one sample to stacked outputs.
void stack(std::vector<Array> &stacked, std::vector<Array> outputs) {
    if (stacked.empty()) {
        for (Array &output : outputs)
            output.shape.insert(output.shape.begin(), 1);
        stacked = std::move(outputs);
        return;
    }
    for (std::size_t i = 0; i < stacked.size(); i++) {
        stacked[i].shape[0] += 1;
        stacked[i].data.insert(stacked[i].data.end(), outputs[i].data.begin(), outputs[i].data.end());
    }
}

std::string bench(Backend &model, std::vector<Array> &first, const Job &job) {
    auto start = Clock::now();
    model.bind(first);
    std::int64_t first_ns = timed([&] { model.invoke(); });
    Nanoseconds warmup, samples;
    WarmUp settle;
    bool converged = false;
    double limit_s = job.number("warmup_max_s", 12);
    while (!converged) {
        model.bind(first);
        warmup.push_back(timed([&] { model.invoke(); }));
        converged = settle.add(warmup.back());
        double spent = seconds_since(start);
        if (spent >= limit_s || (spent >= warmup_s && warmup.size() >= warmup_samples))
            break;
    }
    std::int64_t total_ns = 0;
    auto min_samples = static_cast<std::size_t>(job.number("min_samples", 64));
    double min_ns = job.number("min_time_s", 0.5) * 1e9, max_s = job.number("max_s", 24);
    while (samples.size() < min_samples || static_cast<double>(total_ns) < min_ns) {
        model.bind(first);
        samples.push_back(timed([&] { model.invoke(); }));
        total_ns += samples.back();
        if (seconds_since(start) >= max_s)
            break;
    }
    std::vector<int> cores = affinity();
    return ",\"affinity\":" + list(Nanoseconds(cores.begin(), cores.end())) + ",\"first_ns\":" + std::to_string(first_ns) + ",\"warmup_ns\":" + list(warmup) + ",\"samples_ns\":" + list(samples) +
           ",\"converged\":" + (converged ? "true" : "false");
}

std::string count(Backend &model, std::vector<Array> &first, const Job &job) {
    int runs = static_cast<int>(job.number("runs", 6));
    for (int run = 0; run < runs; run++) {
        model.bind(first);
        prctl(marker, 2 * run, 0, 0, 0);
        model.invoke();
        prctl(marker, 2 * run + 1, 0, 0, 0);
    }
    return ",\"runs\":" + std::to_string(runs);
}

std::string memory(Backend &model, std::vector<Array> &first, long base) {
    for (int run = 0; run < memory_runs; run++) {
        model.bind(first);
        model.invoke();
    }
    return ",\"peak_rss_bytes\":" + std::to_string(proc_bytes("/proc/self/status", "VmHWM:")) +
           ",\"base_rss_bytes\":" + std::to_string(base) + ",\"pss_bytes\":" + std::to_string(proc_bytes("/proc/self/smaps_rollup", "Pss:"));
}

std::string profile(Backend &model, std::vector<Array> &first) {
    for (int run = 0; run < profile_runs; run++) {
        model.bind(first);
        model.invoke();
    }
    return "," + model.traced();
}

std::string work(const Job &job, const std::string &folder) {
    double limit_s = job.number("limit_s", 0);
    if (limit_s > 0)
        // Ends this process also when whoever asked is gone, and while a runtime hangs.
        alarm(static_cast<unsigned>(std::ceil(limit_s)));
    pin(job.numbers("cores"));
    std::string mode = job.text("mode");
    if (mode == "roofline") {
        Roofline found = measure_roofline(static_cast<int>(job.number("threads", 1)));
        return "\"mode\":\"roofline\",\"runtime\":\"native\",\"operations_per_s\":" + std::to_string(found.operations_per_s) +
               ",\"bytes_per_s\":" + std::to_string(found.bytes_per_s);
    }
    std::unique_ptr<Backend> model = make_backend();
    if (mode == "profile")
        model->trace(folder + "trace");
    long base = proc_bytes("/proc/self/status", "VmRSS:");
    std::int64_t load_ns = timed([&] { model->load(folder + job.text("model"), static_cast<int>(job.number("threads", 1))); });
    std::string result = "\"mode\":" + quoted(mode) + ",\"runtime\":" + quoted(model->runtime()) + ",\"load_ns\":" + std::to_string(load_ns);
    if (mode == "describe")
        return result + ",\"inputs\":" + list(model->inputs()) + ",\"outputs\":" + list(model->outputs());
    std::vector<Array> arrays, stacked;
    for (const std::string &name : job.texts("inputs"))
        arrays.push_back(load_npy(folder + name));
    check(model->inputs(), arrays);
    std::vector<Array> first = sample(arrays, 0);
    if (mode == "run") {
        std::size_t samples = arrays.empty() ? 1 : static_cast<std::size_t>(arrays[0].shape[0]);
        for (std::size_t i = 0; i < samples; i++) {
            std::vector<Array> one = sample(arrays, i);
            model->bind(one);
            model->invoke();
            stack(stacked, model->results());
        }
    } else {
        if (mode == "bench")
            result += bench(*model, first, job);
        else if (mode == "memory")
            result += memory(*model, first, base);
        else if (mode == "profile")
            result += profile(*model, first);
        else if (mode == "count")
            result += count(*model, first, job);
        else
            throw JobError("unknown mode " + mode);
        stack(stacked, model->results());
    }
    std::vector<std::string> names;
    for (std::size_t i = 0; i < stacked.size(); i++) {
        std::string name = "output_" + std::to_string(i) + ".npy";
        save_npy(folder + name, stacked[i]);
        names.push_back(quoted(name));
    }
    return result + ",\"outputs\":" + list(names);
}

} // namespace

int answer(const std::string &path) {
    // What a runtime prints goes to stderr; the answer alone goes to stdout.
    int out = dup(1);
    dup2(2, 1);
    std::string body, kind = "model";
    bool done = false;
    try {
        std::ifstream file(path);
        if (!file)
            throw JobError("cannot read " + path);
        std::stringstream text;
        text << file.rdbuf();
        std::size_t slash = path.rfind('/');
        body = work(Job(text.str()), slash == std::string::npos ? "" : path.substr(0, slash + 1));
        done = true;
    } catch (const CoresError &error) {
        kind = "cores";
        body = error.what();
    } catch (const JobError &error) {
        kind = "job";
        body = error.what();
    } catch (const std::exception &error) {
        body = error.what();
    }
    std::string line = "{" + (done ? body + ",\"ok\":true" : "\"ok\":false,\"kind\":" + quoted(kind) + ",\"error\":" + quoted(body)) +
                       ",\"edgefold\":1}\n";
    for (std::size_t at = 0; at < line.size();) {
        ssize_t written = write(out, line.data() + at, line.size() - at);
        if (written <= 0)
            return 1;
        at += static_cast<std::size_t>(written);
    }
    return done ? 0 : 1;
}

} // namespace edgefold

int main(int argc, char **argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s JOB.json\n", argv[0]);
        return 2;
    }
    return edgefold::answer(argv[1]);
}
