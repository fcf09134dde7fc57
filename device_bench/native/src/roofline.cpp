// Chains of fused multiply-adds in registers, as the inner loop of a matrix product has them, and a copy of large blocks.
#include "roofline.hpp"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

namespace edgefold {

namespace {

#if defined(__aarch64__)
typedef float32x4_t Vector;

inline Vector multiply_add(Vector sum, Vector a, Vector b) {
    return vfmaq_f32(sum, a, b);
}
#else
typedef float Vector __attribute__((vector_size(16)));

inline Vector multiply_add(Vector sum, Vector a, Vector b) {
    return sum * a + b;
}
#endif

constexpr std::size_t copy_bytes = std::size_t(64) << 20;
constexpr int accumulators = 16, rounds = 1 << 16;
constexpr double least_s = 0.4;
constexpr int least_times = 5;

// Sixteen accumulators hide the latency of every core, and fit into its registers with the factors.
float multiply_adds() {
    Vector a = {0.5f, 0.5f, 0.5f, 0.5f}, b = {1e-3f, 1e-3f, 1e-3f, 1e-3f}, sums[accumulators];
    for (int i = 0; i < accumulators; i++) // not alike, or the compiler would keep one for all
        sums[i] = Vector{float(i), 1, 2, 3};
    for (int round = 0; round < rounds; round++)
        for (Vector &sum : sums)
            sum = multiply_add(sum, a, b);
    float total = 0;
    for (const Vector &sum : sums)
        total += sum[0] + sum[1] + sum[2] + sum[3];
    return total;
}

// The shortest time of a call on so many threads, of as many as fit.
double best_s(int threads, const std::function<void(int)> &call) {
    double best = 1e9, spent = 0;
    for (int time = 0; time < least_times || spent < least_s; time++) {
        auto start = std::chrono::steady_clock::now();
        std::vector<std::thread> others;
        for (int i = 1; i < threads; i++)
            others.emplace_back(call, i);
        call(0);
        for (std::thread &other : others)
            other.join();
        double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        best = std::min(best, took);
        spent += took;
    }
    return best;
}

} // namespace

Roofline measure_roofline(int threads) {
    std::vector<float> kept(static_cast<std::size_t>(threads)); // so that nothing is left out as unused
    double compute_s = best_s(threads, [&](int i) { kept[static_cast<std::size_t>(i)] = multiply_adds(); });
    std::size_t each = copy_bytes / static_cast<std::size_t>(threads);
    std::vector<std::vector<char>> from(static_cast<std::size_t>(threads), std::vector<char>(each, 1)), to = from;
    double copy_s = best_s(threads, [&](int i) {
        auto at = static_cast<std::size_t>(i);
        std::memcpy(to[at].data(), from[at].data(), each);
        asm volatile("" : : "r"(to[at].data()) : "memory");
    });
    return {2.0 * 4 * accumulators * rounds * threads / compute_s, 2.0 * static_cast<double>(each) * threads / copy_s};
}

} // namespace edgefold
