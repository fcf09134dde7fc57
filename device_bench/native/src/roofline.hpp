// The two limits of the roofline model, as this device reaches them at best.
#pragma once

namespace edgefold {

struct Roofline {
    double operations_per_s; // float32, two a multiply-accumulate
    double bytes_per_s;      // read and written by a copy that no cache holds
};

Roofline measure_roofline(int threads);

} // namespace edgefold
