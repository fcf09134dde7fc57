#include "npy.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>

namespace edgefold {

namespace {

const std::map<std::string, std::string> descriptions = {
    {"float32", "<f4"}, {"float64", "<f8"}, {"float16", "<f2"}, {"int8", "|i1"},  {"uint8", "|u1"},
    {"int16", "<i2"},   {"int32", "<i4"},   {"int64", "<i8"},   {"bool", "|b1"},
};

struct Close {
    void operator()(std::FILE *file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

File open(const std::string &path, const char *mode) {
    File file(std::fopen(path.c_str(), mode));
    if (!file)
        throw std::runtime_error("cannot open " + path + ": " + std::strerror(errno));
    return file;
}

// The text after "'key': " in the header's dictionary.
std::string field(const std::string &header, const std::string &key) {
    std::size_t start = header.find("'" + key + "':");
    if (start == std::string::npos)
        throw std::runtime_error("no " + key + " in the header of an .npy file");
    return header.substr(header.find_first_not_of(' ', start + key.size() + 3));
}

} // namespace

std::size_t size_of(const std::string &dtype) {
    auto found = descriptions.find(dtype);
    if (found == descriptions.end())
        throw std::runtime_error("type " + dtype + " is not supported");
    return static_cast<std::size_t>(found->second[2] - '0');
}

std::size_t Array::count() const {
    std::size_t n = 1;
    for (std::int64_t size : shape)
        n *= static_cast<std::size_t>(size);
    return n;
}

Array Array::at(std::size_t index) const {
    Array part{dtype, {shape.begin() + 1, shape.end()}, {}};
    std::size_t bytes = part.count() * size_of(dtype);
    auto start = data.begin() + static_cast<std::ptrdiff_t>(index * bytes);
    part.data.assign(start, start + static_cast<std::ptrdiff_t>(bytes));
    return part;
}

Array load_npy(const std::string &path) {
    File file = open(path, "rb");
    unsigned char start[10];
    if (std::fread(start, 1, sizeof start, file.get()) != sizeof start || std::memcmp(start, "\x93NUMPY\x01", 7) != 0)
        throw std::runtime_error(path + " is not an .npy file of version 1");
    std::string header(static_cast<std::size_t>(start[8] | start[9] << 8), ' ');
    if (std::fread(header.data(), 1, header.size(), file.get()) != header.size())
        throw std::runtime_error(path + " ends too early");
    if (field(header, "fortran_order").rfind("False", 0) != 0)
        throw std::runtime_error(path + " is in Fortran order");
    Array array;
    std::string description = field(header, "descr").substr(1, 3);
    for (const auto &entry : descriptions)
        if (entry.second == description)
            array.dtype = entry.first;
    std::string shape = field(header, "shape");
    shape = shape.substr(1, shape.find(')') - 1);
    for (std::size_t at = 0; (at = shape.find_first_of("0123456789", at)) != std::string::npos;) {
        std::size_t used = 0;
        array.shape.push_back(std::stoll(shape.substr(at), &used));
        at += used;
    }
    array.data.resize(array.count() * size_of(array.dtype));
    if (std::fread(array.data.data(), 1, array.data.size(), file.get()) != array.data.size())
        throw std::runtime_error(path + " ends too early");
    return array;
}

void save_npy(const std::string &path, const Array &array) {
    std::string shape;
    for (std::int64_t size : array.shape)
        shape += std::to_string(size) + ",";
    std::string header = "{'descr': '" + descriptions.at(array.dtype) + "', 'fortran_order': False, 'shape': (" + shape + "), }";
    // The data begins at a multiple of 64 bytes.
    header.resize((header.size() + 11 + 63) / 64 * 64 - 11, ' ');
    header += '\n';
    File file = open(path, "wb");
    std::string start("\x93NUMPY\x01\x00", 8);
    start += static_cast<char>(header.size() & 0xFF);
    start += static_cast<char>(header.size() >> 8);
    start += header;
    bool written = std::fwrite(start.data(), 1, start.size(), file.get()) == start.size() &&
                   std::fwrite(array.data.data(), 1, array.data.size(), file.get()) == array.data.size();
    // The disk may turn out to be full only now.
    if (!written || std::fflush(file.get()) != 0)
        throw std::runtime_error("cannot write " + path + ": " + std::strerror(errno));
}

} // namespace edgefold
