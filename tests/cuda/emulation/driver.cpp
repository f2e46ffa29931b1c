// Runs the launchers of csrc/cuda over a list of cases, for the sanitizers: every image, output and workspace is a heap
// block of exactly its size, outputs are full of NaN, and each of their elements must be a number afterwards. Whether
// it is the right number is checked elsewhere.
//
//   driver all     every dtype, padding, window, layout and tail
//   driver small   a few images that one OS thread per CUDA thread can manage
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda/kernels.h"
#include "pspl_math.h"

using namespace pspl;

#if defined(PSPL_FLOAT32_ONLY)
// Planted bugs are compiled in one element type; the linker needs the others.
namespace pspl::cuda {
template <DType, DType>
cudaError_t launch_forward(const ForwardParams<float>&, const Workspace&, const Device&, cudaStream_t) {
  return cudaErrorInvalidValue;
}
template <>
cudaError_t launch_forward<DType::kFloat32, DType::kFloat32>(const ForwardParams<float>&, const Workspace&,
                                                             const Device&, cudaStream_t);
template <size_t... kPair>
auto instantiate(std::index_sequence<kPair...>) {
  return std::array{&launch_forward<kFloat32Pairs[kPair].sr, kFloat32Pairs[kPair].hr>...};
}
const auto launchers = instantiate(std::make_index_sequence<std::size(kFloat32Pairs)>());
}  // namespace pspl::cuda
#endif

namespace {

std::mt19937 generator(1);

// More elements than this show nothing new about the backward kernel, and take too many threads.
constexpr int64_t kMostInBackward = 1000;

// Exactly so many bytes on the heap, poisoned.
struct Memory {
  explicit Memory(size_t bytes) : data(std::malloc(bytes)) { std::memset(data, emulation::kPoison, bytes); }
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;
  void* data;
};

enum class Kind { kContiguous, kChannelsLast, kTransposed, kEveryOther };

struct Case {
  int64_t size[5];  // three leading dimensions, rows, columns
  int radius = 5;
  Padding padding = Padding::kZeros;
  Distance distance = Distance::kL1;
  DType sr = DType::kFloat32;
  DType hr = DType::kFloat32;
  Kind layout = Kind::kContiguous;
  bool everything = false;  // statistics and maps too
  int multiprocessors = 132;
};

Strides strides_of(const Case& c, Kind kind) {
  const auto [n, d, channels, height, width] = c.size;
  (void)n;
  switch (kind) {
    case Kind::kChannelsLast:
      return {{d * channels * height * width, channels * height * width, 1}, width * channels, channels};
    case Kind::kTransposed:
      return {{d * channels * height * width, channels * height * width, height * width}, 1, height};
    case Kind::kEveryOther:
      return {{8 * d * channels * height * width, 8 * channels * height * width, 8 * height * width}, 4 * width, 2};
    default:
      return {{d * channels * height * width, channels * height * width, height * width}, width, 1};
  }
}

// Elements from the first to the last one in use.
int64_t extent(const Case& c, const Strides& l) {
  const int64_t stride[5] = {l.leading[0], l.leading[1], l.leading[2], l.row, l.column};
  int64_t last = 0;
  for (int i = 0; i < 5; ++i) last += (c.size[i] - 1) * stride[i];
  return last + 1;
}

size_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

void fill(void* data, DType dtype, int64_t count) {
  std::uniform_real_distribution<float> pixel(0, 1);
  for (int64_t i = 0; i < count; ++i) {
    const float value = pixel(generator);
    if (dtype == DType::kFloat64) static_cast<double*>(data)[i] = value;
    if (dtype == DType::kFloat32) static_cast<float*>(data)[i] = value;
    if (dtype == DType::kFloat16) static_cast<__half*>(data)[i] = __float2half_rn(value);
    if (dtype == DType::kBFloat16) static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
  }
}

void fail(const std::string& what) {
  std::fprintf(stderr, "driver: %s\n", what.c_str());
  std::exit(2);
}

// Of the bits of all outputs, to compare builds (FNV-1a).
uint64_t checksum = 0xcbf29ce484222325;

void add_to_checksum(const void* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    checksum = (checksum ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3;
  }
}

template <typename T>
void expect_numbers(const T* data, int64_t count, const char* name) {
  for (int64_t i = 0; i < count; ++i) {
    if (data[i] != data[i]) fail(std::string(name) + " was not written at " + std::to_string(i));
  }
  add_to_checksum(data, count * sizeof(T));
}

void check(cudaError_t status) {
  if (status != cudaSuccess) fail("a launch failed with cudaError_t " + std::to_string(status));
}

double number_at(const void* data, DType dtype, int64_t i) {
  return dtype == DType::kFloat64   ? static_cast<const double*>(data)[i]
         : dtype == DType::kFloat32 ? static_cast<const float*>(data)[i]
         : dtype == DType::kFloat16 ? __half2float(static_cast<const __half*>(data)[i])
                                    : __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
}

void expect_numbers(const void* data, DType dtype, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const double value = number_at(data, dtype, i);
    if (value != value) fail("gradient was not written at " + std::to_string(i));
  }
  add_to_checksum(data, count * bytes_of(dtype));
}

// The bits of an element, as a number.
uint64_t bits_at(const void* data, DType dtype, int64_t i) {
  uint64_t bits = 0;
  std::memcpy(&bits, static_cast<const unsigned char*>(data) + i * bytes_of(dtype), bytes_of(dtype));
  return bits;
}

void store(void* data, DType dtype, double value) {
  if (dtype == DType::kFloat64) *static_cast<double*>(data) = value;
  if (dtype == DType::kFloat32) *static_cast<float*>(data) = static_cast<float>(value);
  if (dtype == DType::kFloat16) *static_cast<__half*>(data) = __double2half(value);
  if (dtype == DType::kBFloat16) *static_cast<__nv_bfloat16*>(data) = __double2bfloat16(value);
}

// Each element is sign * grad_output * saved_gradient, formed in float32 and rounded once.
void expect_product(const void* gradient, DType dtype, const void* saved, DType saved_dtype, float product,
                    int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    uint64_t expected = 0;
    const float value = static_cast<float>(number_at(saved, saved_dtype, i)) * product;
    store(&expected, dtype, value);
    if (bits_at(gradient, dtype, i) != expected) fail("gradient is not the product at " + std::to_string(i));
  }
}

// Out of place and in place, also from an element that no packet is aligned to.
void backward(const ForwardParams<float>& p, const cuda::Device& device) {
  const int64_t count = p.numel();
  const DType saved = p.gradient.dtype;
  const std::vector<DType> dtypes = saved == DType::kFloat32
                                        ? std::vector<DType>{saved, DType::kFloat16, DType::kBFloat16}
                                        : std::vector<DType>{saved};
  for (int64_t offset = 0; offset < std::min<int64_t>(2, count); ++offset) {
    auto* const from = static_cast<unsigned char*>(p.gradient.data) + offset * bytes_of(saved);
    for (const float grad_output : {1.0f, 0.75f}) {
      const auto scalar = std::make_unique<float>(grad_output);
      for (const DType out : dtypes) {
        const Memory gradient((count - offset) * bytes_of(out));
        check(cuda::backward({from, saved, scalar.get(), -1.0f, gradient.data, out, count - offset}, device, nullptr));
        expect_product(gradient.data, out, from, saved, -grad_output, count - offset);
      }
      const Memory in_place((count - offset) * bytes_of(saved));
      std::memcpy(in_place.data, from, (count - offset) * bytes_of(saved));
      check(cuda::backward({in_place.data, saved, scalar.get(), 1.0f, in_place.data, saved, count - offset}, device,
                           nullptr));
      expect_product(in_place.data, saved, from, saved, grad_output, count - offset);
    }
  }
}

template <typename T>
void run(const Case& c) {
  const Strides strides = strides_of(c, c.layout);
  const Strides dense = strides_of(c, c.layout == Kind::kEveryOther ? Kind::kContiguous : c.layout);
  const int64_t elements = extent(c, strides);
  const Memory sr(elements * bytes_of(c.sr));
  const Memory hr(elements * bytes_of(c.hr));
  fill(sr.data, c.sr, elements);
  fill(hr.data, c.hr, elements);

  ForwardParams<T> p{};
  std::copy_n(c.size, kLeadingDims, p.leading);
  p.height = c.size[3];
  p.width = c.size[4];
  p.sr = {sr.data, c.sr, strides};
  p.hr = {hr.data, c.hr, strides};
  p.padding = c.padding;
  p.distance = c.distance;
  p.radius = c.radius;
  p.step = T(1);
  // As pspl_cuda/autograd.py chooses it.
  const DType saved = sizeof(T) == 8 ? DType::kFloat64 : c.sr == DType::kFloat16 ? DType::kFloat32 : c.sr;
  set_constants(p, {1, 0, 2, -1, 1, 1.5, 0.01, 0.03, 1e-3}, 1.0);

  const Memory gradient(p.numel() * bytes_of(saved));
  const Memory loss(sizeof(T));
  const Memory stats(kNumStats * sizeof(T));
  p.gradient = {gradient.data, saved, dense};
  p.loss = static_cast<T*>(loss.data);
  if (c.everything) p.stats = static_cast<T*>(stats.data);
  const Memory partials(cuda::workspace_size(p) * sizeof(double));
  const auto ticket = std::make_unique<unsigned>(0);
  // The same plan for all architectures, so that their results can be compared.
  const cuda::Device device{90, c.multiprocessors, 228 * 1024};
  ++emulation::order.seed;
  check(cuda::forward<T>(p, {static_cast<double*>(partials.data), ticket.get()}, device, nullptr));
  expect_numbers(gradient.data, saved, p.numel());
  expect_numbers(p.loss, 1, "loss");
  if (c.everything) expect_numbers(p.stats, kNumStats, "stats");
  if (*ticket != 0) fail("the ticket is not 0 after the launch");
  if constexpr (sizeof(T) == 4) {
    if (p.numel() <= kMostInBackward) backward(p, device);
  }
  if (!c.everything) return;

  // Maps alone need no workspace.
  for (const Output output : {Output::kLossMap, Output::kSimilarityMap, Output::kAttentionMap}) {
    const Memory map(p.numel() * sizeof(T));
    p.map = {static_cast<T*>(map.data), dense};
    p.output = output;
    p.gradient = {};
    p.loss = p.stats = nullptr;
    check(cuda::forward<T>(p, {nullptr, nullptr}, device, nullptr));
    expect_numbers(p.map.data, p.numel(), "map");
  }
}

void run(const Case& c) {
  if (c.sr == DType::kFloat64 || c.hr == DType::kFloat64) {
    run<double>(c);
  } else {
    run<float>(c);
  }
}

std::vector<Case> small_cases() {
  std::vector<Case> cases;
  for (const bool everything : {false, true}) {
    cases.push_back({.size = {1, 1, 1, 10, 66}, .everything = everything});  // one block, two strips side by side
    cases.push_back({.size = {1, 1, 2, 17, 70}, .everything = everything});  // two blocks
    cases.push_back({.size = {1, 1, 3, 9, 65}, .padding = Padding::kReflect, .everything = everything});
  }
  cases.push_back({.size = {1, 1, 1, 9, 12}, .radius = 3});
  cases.push_back({.size = {1, 1, 1, 9, 130}, .radius = 6});  // two blocks of the generic kernel
  return cases;
}

std::vector<Case> all_cases() {
  const int64_t sizes[][5] = {{1, 1, 1, 1, 1},   {1, 1, 1, 1, 2},  {1, 1, 2, 3, 5},   {1, 1, 1, 11, 11},
                              {2, 1, 3, 8, 64},  {1, 2, 3, 17, 6}, {1, 1, 1, 21, 65}, {1, 1, 1, 40, 127},
                              {1, 1, 1, 2, 300}, {1, 1, 5, 19, 33}};
  std::vector<Case> cases;
  const auto add = [&](Case c) {
    for (const auto& size : sizes) {
      std::copy_n(size, 5, c.size);
      cases.push_back(c);
    }
  };
  for (const Padding padding : {Padding::kZeros, Padding::kReflect, Padding::kReplicate}) {
    for (const Kind layout : {Kind::kContiguous, Kind::kChannelsLast, Kind::kTransposed, Kind::kEveryOther}) {
      for (const bool everything : {false, true}) {
        add({.padding = padding, .layout = layout, .everything = everything});
        add({.padding = padding,
             .distance = Distance::kCharbonnier,
             .layout = layout,
             .everything = everything,
             .multiprocessors = 1});
      }
    }
    for (const int radius : {0, 1, 2, 3, 4, 6})
      add({.radius = radius, .padding = padding, .everything = radius % 2 == 0});
#if !defined(PSPL_FLOAT32_ONLY)
    const DType dtypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16};
    for (const DType sr : dtypes) {
      for (const DType hr : dtypes) {
        if (!cuda::has_kernels(sr, hr)) continue;
        add({.padding = padding, .sr = sr, .hr = hr, .everything = sr != DType::kFloat16});
        add({.padding = padding, .distance = Distance::kL2, .sr = sr, .hr = hr, .layout = Kind::kChannelsLast});
      }
    }
    for (const int radius : {1, 3, 7}) {
      add({.radius = radius, .padding = padding, .sr = DType::kFloat64, .hr = DType::kFloat64});
      add({.radius = radius, .padding = padding, .sr = DType::kFloat16, .hr = DType::kFloat32});
    }
#endif
  }
  return cases;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string which = count == 2 ? arguments[1] : "";
  if (which != "all" && which != "small") fail("expected all or small");
  const std::vector<Case> cases = which == "all" ? all_cases() : small_cases();
  for (const Case& c : cases) run(c);
  std::printf("checksum %016llx, %zu cases\n", static_cast<unsigned long long>(checksum), cases.size());
}
