// What the drivers of the CPU and CUDA kernels share: the cases, and images and outputs as heap blocks of exactly their
// size. What does not belong to an image, and every output before the launch, is NaN: each element of an output must be
// a number afterwards, and what lies between them must be as it was. Whether it is the right number is checked
// elsewhere.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "pspl_math.h"

namespace pspl::driver {

inline std::mt19937 generator(1);

inline void fail(const std::string& what) {
  std::fprintf(stderr, "driver: %s\n", what.c_str());
  std::exit(2);
}

enum class Kind { kContiguous, kChannelsLast, kTransposed, kEveryOther, kExpandedBatch, kExpandedRows, kExpandedAll };

struct Case {
  int64_t size[5];  // three leading dimensions, rows, columns
  int radius = 5;
  Padding padding = Padding::kZeros;
  Distance distance = Distance::kL1;
  DType sr = DType::kFloat32;
  DType hr = DType::kFloat32;
  Kind sr_layout = Kind::kContiguous;
  Kind hr_layout = Kind::kContiguous;
  Kind out_layout = Kind::kContiguous;
  bool everything = false;  // statistics and maps too
  double sigma = 1.5;
  int multiprocessors = 132;  // of the emulated GPU
};

inline Strides strides_of(const Case& c, Kind kind) {
  const int64_t d = c.size[1], channels = c.size[2], height = c.size[3], width = c.size[4];
  const int64_t plane = height * width, image = channels * plane;
  switch (kind) {
    case Kind::kChannelsLast:
      return {{d * image, image, 1}, width * channels, channels};
    case Kind::kTransposed:
      return {{d * image, image, plane}, 1, height};
    case Kind::kEveryOther:
      return {{8 * d * image, 8 * image, 8 * plane}, 4 * width, 2};
    case Kind::kExpandedBatch:
      return {{0, 0, plane}, width, 1};
    case Kind::kExpandedRows:
      return {{d * channels * width, channels * width, width}, 0, 1};
    case Kind::kExpandedAll:
      return {{0, 0, 0}, 0, 0};
    default:
      return {{d * image, image, plane}, width, 1};
  }
}

template <typename Visit>
void for_each_offset(const Case& c, const Strides& l, Visit visit) {
  for (int64_t i = 0; i < c.size[0]; ++i)
    for (int64_t j = 0; j < c.size[1]; ++j)
      for (int64_t k = 0; k < c.size[2]; ++k)
        for (int64_t y = 0; y < c.size[3]; ++y)
          for (int64_t x = 0; x < c.size[4]; ++x) visit(l.plane_offset(i, j, k) + y * l.row + x * l.column);
}

// Elements from the first to the last one in use.
inline int64_t extent(const Case& c, const Strides& l) {
  const int64_t stride[5] = {l.leading[0], l.leading[1], l.leading[2], l.row, l.column};
  int64_t last = 0;
  for (int i = 0; i < 5; ++i) last += (c.size[i] - 1) * stride[i];
  return last + 1;
}

// Exactly so many bytes on the heap; as numbers of any type, NaN.
struct Memory {
  explicit Memory(size_t bytes) : data(std::malloc(bytes)) { std::memset(data, 0xff, bytes); }
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data;
};

// A pixel in [0, 1); in 16 bits a multiple of 2^-8, which every type holds exactly and whose bits are easily made.
inline void put_pixel(void* data, DType dtype, int64_t index) {
  const uint32_t random = generator();
  if (dtype == DType::kFloat64) static_cast<double*>(data)[index] = random * 0x1p-32;
  if (dtype == DType::kFloat32) static_cast<float*>(data)[index] = static_cast<float>(random >> 8) * 0x1p-24f;
  const float coarse = static_cast<float>(random % 256) / 256;
  uint32_t bits;
  std::memcpy(&bits, &coarse, sizeof(bits));
  const uint32_t half = coarse == 0 ? 0 : ((bits >> 13) & 0x3ff) | ((((bits >> 23) & 0xff) - 127 + 15) << 10);
  if (dtype == DType::kFloat16) static_cast<uint16_t*>(data)[index] = uint16_t(half);
  if (dtype == DType::kBFloat16) static_cast<uint16_t*>(data)[index] = uint16_t(bits >> 16);
}

// A number, or NaN; of a 16-bit number only the bits.
inline double number_or_nan(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kFloat64) return static_cast<const double*>(data)[i];
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  const int mantissa = dtype == DType::kFloat16 ? 10 : 7;
  return (bits & 0x7fff) >> mantissa == (0x7fff >> mantissa) ? NAN : bits;
}

template <typename T>
constexpr DType kComputeType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

inline void expect_numbers(const void* data, DType dtype, int64_t count, const char* name) {
  for (int64_t i = 0; i < count; ++i)
    if (std::isnan(number_or_nan(data, dtype, i))) fail(std::string(name) + " is not a number at " + std::to_string(i));
}

struct Image {
  Image(const Case& c, DType dtype, Kind kind)
      : strides(strides_of(c, kind)), memory(extent(c, strides) * size_of(dtype)), input{memory.data, dtype, strides} {
    for_each_offset(c, strides, [&](int64_t offset) { put_pixel(memory.data, dtype, offset); });
  }
  Strides strides;
  Memory memory;
  InputImage input;
};

// One element per pixel, of any dtype.
struct Result {
  Result(const Case& c, DType dtype, const char* name)
      : c(c),
        dtype(dtype),
        name(name),
        strides(strides_of(c, c.out_layout)),
        count(extent(c, strides)),
        memory(count * size_of(dtype)) {}

  void check() const {
    std::vector<bool> inside(count, false);
    for_each_offset(c, strides, [&](int64_t offset) { inside[offset] = true; });
    for (int64_t i = 0; i < count; ++i) {
      const bool written = !std::isnan(number_or_nan(memory.data, dtype, i));
      if (inside[i] && !written) fail(std::string(name) + " is not a number at " + std::to_string(i));
      if (!inside[i] && written) fail(std::string(name) + " was written between its pixels, at " + std::to_string(i));
    }
  }

  const Case& c;
  DType dtype;
  const char* name;
  Strides strides;
  int64_t count;
  Memory memory;
};

// All but the outputs.
template <typename T>
ForwardParams<T> parameters(const Case& c, const Image& sr, const Image& hr) {
  ForwardParams<T> p{};
  std::copy_n(c.size, kLeadingDims, p.leading);
  p.height = c.size[3];
  p.width = c.size[4];
  p.sr = sr.input;
  p.hr = hr.input;
  p.padding = c.padding;
  p.distance = c.distance;
  p.radius = c.radius;
  p.step = T(1);
  set_constants(p, {1, 0, 2, -1, 1, c.sigma, 0.01, 0.03, 1e-3}, 1.0);
  return p;
}

// Calls run(map) with the parameters of each map, which replaces the loss.
template <typename T, typename Run>
void for_each_map(ForwardParams<T>& p, const Case& c, const Run& run) {
  for (const Output output : {Output::kLossMap, Output::kSimilarityMap, Output::kAttentionMap}) {
    const Result map(c, kComputeType<T>, "map");
    p.map = {static_cast<T*>(map.memory.data), map.strides};
    p.output = output;
    p.gradient = {};
    p.loss = p.stats = nullptr;
    run(map);
  }
}

}  // namespace pspl::driver
