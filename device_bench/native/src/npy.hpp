// Arrays in numpy's .npy format, version 1: little-endian, C order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace edgefold {

struct Array {
    std::string dtype; // numpy's name: "float32"
    std::vector<std::int64_t> shape;
    std::vector<char> data;

    std::size_t count() const;
    // The part at one index of the first dimension.
    Array at(std::size_t index) const;
};

std::size_t size_of(const std::string &dtype);

Array load_npy(const std::string &path);
void save_npy(const std::string &path, const Array &array);

} // namespace edgefold
