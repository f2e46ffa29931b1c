// Runs the kernels of csrc/cpu over many cases without torch, for the sanitizers and for other compilers and
// processors. Every image and output is a heap block of exactly its size. What does not belong to an image, and every
// output before the launch, is NaN: each element of an output must be a number afterwards, and what lies between them
// must be as it was. Whether it is the right number is checked elsewhere, or by comparing two dumps.
//
//   driver          run the cases; print the instruction set and how many there were
//   driver FILE     also write all outputs to FILE, as doubles
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "pspl_math.h"

using namespace pspl;

namespace {

std::mt19937 generator(1);
std::FILE* dump = nullptr;

void fail(const std::string& what) {
  std::fprintf(stderr, "driver: %s\n", what.c_str());
  std::exit(2);
}

// The jobs in another order at every launch: none may wait for another, and the result may not depend on it.
void run_jobs(int64_t jobs, void (*body)(void* context, int64_t job), void* context) {
  std::vector<int64_t> order(jobs);
  for (int64_t i = 0; i < jobs; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937(unsigned(jobs)));
  for (const int64_t job : order) body(context, job);
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
  double sigma = 0;         // 0: one that fits the radius
};

Strides strides_of(const Case& c, Kind kind) {
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
int64_t extent(const Case& c, const Strides& l) {
  int64_t last = 0;
  for_each_offset(c, l, [&](int64_t offset) { last = std::max(last, offset); });
  return last + 1;
}

size_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// Exactly so many bytes on the heap; as numbers of any type, NaN.
struct Memory {
  explicit Memory(size_t bytes) : data(std::malloc(bytes)) { std::memset(data, 0xff, bytes); }
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data;
};

// A multiple of 2^-8 in [0, 1): every type holds it exactly, and its bits are easily made.
void put(void* data, DType dtype, int64_t index, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t half = value == 0 ? 0 : ((bits >> 13) & 0x3ff) | ((((bits >> 23) & 0xff) - 127 + 15) << 10);
  if (dtype == DType::kFloat64) static_cast<double*>(data)[index] = value;
  if (dtype == DType::kFloat32) static_cast<float*>(data)[index] = value;
  if (dtype == DType::kFloat16) static_cast<uint16_t*>(data)[index] = uint16_t(half);
  if (dtype == DType::kBFloat16) static_cast<uint16_t*>(data)[index] = uint16_t(bits >> 16);
}

struct Image {
  Image(const Case& c, DType dtype, Kind kind)
      : strides(strides_of(c, kind)), memory(extent(c, strides) * bytes_of(dtype)), input{memory.data, dtype, strides} {
    for_each_offset(c, strides,
                    [&](int64_t offset) { put(memory.data, dtype, offset, float(generator() % 256) / 256); });
  }
  Strides strides;
  Memory memory;
  InputImage input;
};

template <typename T>
void keep(T value) {
  const double wide = value;
  if (dump != nullptr && std::fwrite(&wide, sizeof(wide), 1, dump) != 1) fail("the dump can't be written");
}

double value_of(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kFloat64) return static_cast<const double*>(data)[i];
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  const int mantissa = dtype == DType::kFloat16 ? 10 : 7;
  return (bits & 0x7fff) >> mantissa == (0x7fff >> mantissa) ? NAN : bits;
}

template <typename T>
constexpr DType kComputeType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

// One element per pixel, of any dtype.
struct Result {
  Result(const Case& c, DType dtype, const char* name)
      : c(c),
        dtype(dtype),
        name(name),
        strides(strides_of(c, c.out_layout)),
        count(extent(c, strides)),
        memory(count * bytes_of(dtype)) {}

  void check() const {
    std::vector<bool> inside(count, false);
    for_each_offset(c, strides, [&](int64_t offset) {
      inside[offset] = true;
      const double value = value_of(memory.data, dtype, offset);
      if (std::isnan(value)) fail(std::string(name) + " is not a number at " + std::to_string(offset));
      // Two instruction sets may round to different neighbours, which are far apart in 16 bits.
      if (bytes_of(dtype) > 2) keep(value);
    });
    for (int64_t i = 0; i < count; ++i)
      if (!inside[i] && !std::isnan(value_of(memory.data, dtype, i)))
        fail(std::string(name) + " was written between its pixels, at " + std::to_string(i));
  }

  const Case& c;
  DType dtype;
  const char* name;
  Strides strides;
  int64_t count;
  Memory memory;
};

template <typename T>
void check_numbers(const T* data, int count, const char* name) {
  for (int i = 0; i < count; ++i) {
    if (std::isnan(data[i])) fail(std::string(name) + " is not a number at " + std::to_string(i));
    keep(data[i]);
  }
}

template <typename T>
void run(const Case& c) {
  const Image sr(c, c.sr, c.sr_layout), hr(c, c.hr, c.hr_layout);
  ForwardParams<T> p{};
  std::copy_n(c.size, kLeadingDims, p.leading);
  p.height = c.size[3];
  p.width = c.size[4];
  p.sr = sr.input;
  p.hr = hr.input;
  p.padding = c.padding;
  p.distance = c.distance;
  p.radius = c.radius;
  const double sigma = c.sigma > 0 ? c.sigma : c.radius == 5 ? 1.5 : c.radius / 3.0 + 0.5;
  set_constants(p, {1, 0, 2, -1, 1, sigma, 0.01, 0.03, 1e-3}, 1.0);
  p.step = T(1);

  const Memory loss(sizeof(T)), stats(kNumStats * sizeof(T));
  const Result gradient(c, c.everything || sizeof(T) == 8 ? kComputeType<T> : c.sr, "gradient");
  p.gradient = {gradient.memory.data, gradient.dtype, gradient.strides};
  p.loss = static_cast<T*>(loss.data);
  if (c.everything) p.stats = static_cast<T*>(stats.data);
  cpu::forward<T>(p, run_jobs);
  gradient.check();
  check_numbers(p.loss, 1, "loss");
  if (!c.everything) return;
  check_numbers(p.stats, kNumStats, "stats");
  for (const Output output : {Output::kLossMap, Output::kSimilarityMap, Output::kAttentionMap}) {
    const Result map(c, kComputeType<T>, "map");
    p.map = {static_cast<T*>(map.memory.data), map.strides};
    p.output = output;
    p.gradient = {};
    p.loss = p.stats = nullptr;
    cpu::forward<T>(p, run_jobs);
    map.check();
  }
}

// The backward pass, also from an element that no vector is aligned to. saved is the saved gradient's dtype.
void run_backward(int64_t count, DType saved, DType dtype) {
  for (int64_t offset = 0; offset < 2; ++offset) {
    const Memory saved_gradient((count + offset) * bytes_of(saved)), grad_output(sizeof(float)),
        gradient(count * bytes_of(dtype));
    for (int64_t i = 0; i < count + offset; ++i) put(saved_gradient.data, saved, i, float(generator() % 256) / 256);
    *static_cast<float*>(grad_output.data) = 0.5f;
    const char* const from = static_cast<const char*>(saved_gradient.data) + offset * bytes_of(saved);
    cpu::backward({from, saved, static_cast<float*>(grad_output.data), 1.0f, gradient.data, dtype, count}, run_jobs);
    for (int64_t i = 0; i < count; ++i)
      if (std::isnan(value_of(gradient.data, dtype, i))) fail("gradient is not a number at " + std::to_string(i));
  }
}

const DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16};
const Padding kPaddings[] = {Padding::kZeros, Padding::kReflect, Padding::kReplicate};

std::vector<Case> all_cases() {
  // Around vectors, strips and bands of every instruction set and compute type; smaller than the window.
  const int64_t sizes[][5] = {{1, 1, 1, 1, 1},    {1, 1, 1, 2, 300}, {1, 1, 1, 11, 11}, {1, 2, 3, 17, 6},
                              {1, 1, 1, 300, 1},  {1, 1, 1, 7, 95},  {1, 1, 2, 5, 96},  {1, 1, 1, 6, 97},
                              {1, 1, 1, 12, 193}, {1, 1, 1, 65, 5},  {1, 1, 1, 129, 3}, {2, 2, 1, 3, 49}};
  std::vector<Case> cases;
  const auto add = [&](Case c) {
    for (const auto& size : sizes) {
      std::copy_n(size, 5, c.size);
      cases.push_back(c);
    }
  };
  const auto with = [](auto change) {
    Case c{};
    change(c);
    return c;
  };
  for (const Padding padding : kPaddings) {
    for (const Kind layout : {Kind::kContiguous, Kind::kChannelsLast, Kind::kTransposed, Kind::kEveryOther}) {
      add(with([&](Case& c) {
        c.padding = padding;
        c.sr_layout = c.hr_layout = c.out_layout = layout;
        c.everything = true;
      }));
    }
    for (const int radius : {0, 1, 2, 3, 4, 6, 15, kMaxRadius}) {
      // The largest windows are slow on more than the smallest images, and show nothing new there.
      if (radius == kMaxRadius) {
        cases.push_back({{1, 1, 1, 3, 4}, radius, padding});
        continue;
      }
      add(with([&](Case& c) {
        c.radius = radius;
        c.padding = padding;
        c.distance = Distance::kL2;
        c.everything = radius % 2 == 0;
      }));
    }
  }
  // Too narrow for two output rows to share a pivot.
  add(with([](Case& c) {
    c.sigma = 0.25;
    c.everything = true;
  }));
  int which = 0;
  for (const DType sr : kDTypes) {
    for (const DType hr : kDTypes) {
      add(with([&](Case& c) {
        c.padding = kPaddings[which++ % 3];
        c.sr = sr;
        c.hr = hr;
        c.sr_layout = which % 2 == 0 ? Kind::kEveryOther : Kind::kContiguous;
        c.everything = which % 4 == 0;
      }));
    }
  }
  for (const Kind layout : {Kind::kExpandedBatch, Kind::kExpandedRows, Kind::kExpandedAll}) {
    add(with([&](Case& c) {
      c.padding = kPaddings[which++ % 3];
      c.hr_layout = layout;
      c.sr_layout = c.out_layout = Kind::kChannelsLast;
      c.distance = Distance::kCharbonnier;
    }));
  }
  return cases;
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 2 && (dump = std::fopen(arguments[1], "wb")) == nullptr) fail("the dump can't be opened");
  const std::vector<Case> cases = all_cases();
  for (const Case& c : cases) {
    if (c.sr == DType::kFloat64 || c.hr == DType::kFloat64)
      run<double>(c);
    else
      run<float>(c);
  }
  // Around the vectors and the chunks that the backward pass is cut into.
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const int64_t n : {1, 7, 65, (1 << 16) - 1, (1 << 16) + 1}) {
      for (const DType saved : {DType::kFloat32, dtype}) run_backward(n, saved, dtype);
    }
  }
  if (dump != nullptr && std::fclose(dump) != 0) fail("the dump can't be written");
  std::printf("%s %zu cases\n", cpu::instruction_set(), cases.size());
}
