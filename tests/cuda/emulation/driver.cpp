// Runs the launchers of csrc/cuda over a list of cases, for the sanitizers, and prints a checksum of all outputs.
//
//   driver all     every dtype, padding, window, layout and tail
//   driver small   a few images that one OS thread per CUDA thread can manage
#include <array>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../helpers/driver_common.h"
#include "cuda/kernels.h"
#include "pspl_math.h"

using namespace pspl;
using namespace pspl::driver;

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

// More elements than this show nothing new about the backward kernel, and take too many threads.
constexpr int64_t kMostInBackward = 1000;

// Of the bits of all outputs, to compare builds (FNV-1a).
uint64_t checksum = 0xcbf29ce484222325;

void add_to_checksum(const void* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    checksum = (checksum ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3;
  }
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

// The bits of an element, as a number.
uint64_t bits_at(const void* data, DType dtype, int64_t i) {
  uint64_t bits = 0;
  std::memcpy(&bits, static_cast<const unsigned char*>(data) + i * size_of(dtype), size_of(dtype));
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
    auto* const from = static_cast<unsigned char*>(p.gradient.data) + offset * size_of(saved);
    for (const float grad_output : {1.0f, 0.75f}) {
      const auto scalar = std::make_unique<float>(grad_output);
      for (const DType out : dtypes) {
        const Memory gradient((count - offset) * size_of(out));
        check(cuda::backward({from, saved, scalar.get(), -1.0f, gradient.data, out, count - offset}, device, nullptr));
        expect_product(gradient.data, out, from, saved, -grad_output, count - offset);
      }
      const Memory in_place((count - offset) * size_of(saved));
      std::memcpy(in_place.data, from, (count - offset) * size_of(saved));
      check(cuda::backward({in_place.data, saved, scalar.get(), 1.0f, in_place.data, saved, count - offset}, device,
                           nullptr));
      expect_product(in_place.data, saved, from, saved, grad_output, count - offset);
    }
  }
}

template <typename T>
void check_numbers(const T* data, int64_t count, const char* name) {
  expect_numbers(data, kComputeType<T>, count, name);
  add_to_checksum(data, count * sizeof(T));
}

void check(const Result& result) {
  result.check();
  add_to_checksum(result.memory.data, result.count * size_of(result.dtype));
}

template <typename T>
void run(const Case& c) {
  const Image sr(c, c.sr, c.sr_layout), hr(c, c.hr, c.hr_layout);
  ForwardParams<T> p = parameters<T>(c, sr, hr);
  // As pspl_cuda/_autograd.py chooses it.
  const DType saved = sizeof(T) == 8 ? DType::kFloat64 : c.sr == DType::kFloat16 ? DType::kFloat32 : c.sr;

  const Memory loss(sizeof(T)), stats(kNumStats * sizeof(T));
  const Result gradient(c, saved, "gradient");
  p.gradient = {gradient.memory.data, saved, gradient.strides};
  p.loss = static_cast<T*>(loss.data);
  if (c.everything) p.stats = static_cast<T*>(stats.data);
  const Memory partials(cuda::workspace_size(p) * sizeof(double));
  const auto ticket = std::make_unique<unsigned>(0);
  const cuda::Device device{c.multiprocessors, 228 * 1024};
  ++emulation::order.seed;
  check(cuda::forward<T>(p, {static_cast<double*>(partials.data), ticket.get()}, device, nullptr));
  check(gradient);
  check_numbers(p.loss, 1, "loss");
  if (c.everything) check_numbers(p.stats, kNumStats, "stats");
  if (*ticket != 0) fail("the ticket is not 0 after the launch");
  if constexpr (sizeof(T) == 4) {
    if (p.numel() <= kMostInBackward) backward(p, device);
  }
  if (!c.everything) return;

  // Maps alone need no workspace.
  for_each_map(p, c, [&](const Result& map) {
    check(cuda::forward<T>(p, {nullptr, nullptr}, device, nullptr));
    check(map);
  });
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
  // Outputs are dense; the backward pass needs them so.
  const auto add = [&](Case c) {
    c.hr_layout = c.sr_layout;
    c.out_layout = c.sr_layout == Kind::kEveryOther ? Kind::kContiguous : c.sr_layout;
    for (const auto& size : sizes) {
      std::copy_n(size, 5, c.size);
      cases.push_back(c);
    }
  };
  for (const Padding padding : {Padding::kZeros, Padding::kReflect, Padding::kReplicate}) {
    for (const Kind layout : {Kind::kContiguous, Kind::kChannelsLast, Kind::kTransposed, Kind::kEveryOther}) {
      for (const bool everything : {false, true}) {
        add({.padding = padding, .sr_layout = layout, .everything = everything});
        add({.padding = padding,
             .distance = Distance::kCharbonnier,
             .sr_layout = layout,
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
        add({.padding = padding, .distance = Distance::kL2, .sr = sr, .hr = hr, .sr_layout = Kind::kChannelsLast});
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
