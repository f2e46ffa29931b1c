// CUDA as far as csrc/cuda speaks it, for g++: the .cu files and their headers compile unmodified with this in front
// (g++ -include cuda_shim.h -I toolkit). One block runs after the other; how the threads of a block run is the business
// of a "machine", of which there are two:
//
//   fibers.cpp   one fiber per CUDA thread, in one OS thread: fast, and the same at every run
//   threads.cpp  one OS thread per CUDA thread, for ThreadSanitizer
//
// Approximate instructions return the exact value moved by their documented error bound (Approximation). Not emulated:
// weak memory order as such (ThreadSanitizer looks for what would depend on it), registers, caches, streams. An
// alignment fault is found by UBSan.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

// ---------------------------------------------------------------- qualifiers that g++ does not need

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
// Kernels declare `extern __shared__ unsigned char shared_memory[]`: a variable of the machine, one for all blocks in
// turn.
#define __shared__

// ---------------------------------------------------------------- the machine

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#if defined(PSPL_MACHINE_OF_THREADS)
extern thread_local dim3 threadIdx, blockIdx, gridDim;
#else
extern dim3 threadIdx, blockIdx, gridDim;
#endif

namespace emulation {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 48 * 1024;  // what a launch gets without opting in to more
constexpr size_t kMaxParameterBytes = 4096;    // what every architecture and toolkit grants

// What fresh memory holds: as a number of any type, NaN.
constexpr unsigned char kPoison = 0xff;

// A different order at every seed, for everything that CUDA leaves open: which block is next, which warp and lane runs
// first. Seed 0 is first to last, 1 last to first.
struct Order {
  unsigned seed = 0;
};
inline Order order;

// Runs body() as every thread of every block, shared memory poisoned before each block. Throws when threads wait for
// one another in vain: a barrier that some of them do not reach.
void run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& body);

void block_barrier();
void warp_barrier();
// Every lane of a warp gives a value and gets that of another lane. Orders nothing else: a shuffle is no memory
// barrier.
uint64_t exchange(uint64_t value, unsigned other_lane);
void atomic_was_read();
void fence();

}  // namespace emulation

// ---------------------------------------------------------------- threads of a block, of a grid

inline void __syncthreads() { emulation::block_barrier(); }
inline void __syncwarp() { emulation::warp_barrier(); }
inline void __threadfence() { emulation::fence(); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  if (mask != 0xffffffffu) __builtin_trap();  // not emulated, and not needed
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = emulation::exchange(bits, static_cast<unsigned>(lane) % emulation::kWarpSize);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % emulation::kWarpSize) ^ lane_mask);
}

inline int __any_sync(unsigned mask, int predicate) {
  int any = predicate;
  for (int offset = emulation::kWarpSize / 2; offset > 0; offset /= 2) any |= __shfl_xor_sync(mask, any, offset);
  return any;
}

inline unsigned atomicInc(unsigned* address, unsigned limit) {
  unsigned old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(address, &old, old >= limit ? 0 : old + 1, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  emulation::atomic_was_read();
  return old;
}

template <typename T>
T __ldcg(const T* address) {
  return *address;
}

// Of equal types only: CUDA has more overloads, but a conversion nobody asked for should not compile.
using std::copysign;
using std::fabs;
using std::fmax;
using std::max;
using std::min;

// ---------------------------------------------------------------- approximate instructions

namespace emulation {

// Where within its error bound an approximate instruction lands.
enum class Approximation { kNearest, kLargest, kSmallest, kRandom };
inline Approximation approximation = Approximation::kNearest;

inline float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

// exact moved by at most `ulps` units in the last place. Zeros, infinities and NaN are exact on the device too.
inline float moved(double exact, double ulps) {
  const float nearest = flush(static_cast<float>(exact));
  if (approximation == Approximation::kNearest || nearest == 0 || !std::isfinite(nearest)) return nearest;
  double share = approximation == Approximation::kLargest ? 1 : -1;
  if (approximation == Approximation::kRandom) {
    uint32_t bits;  // the same for the same operand, as on a device
    std::memcpy(&bits, &nearest, sizeof(bits));
    share = static_cast<double>(bits * 2654435761u) / 2147483648.0 - 1;
  }
  const double bound = std::fabs(ulps * (std::nextafter(std::fabs(nearest), HUGE_VALF) - std::fabs(nearest)));
  float result = static_cast<float>(exact + share * bound);
  if (std::fabs(result - exact) > bound) result = std::nextafter(result, nearest);
  return flush(result);
}

inline float rcp_approx(float x) { return moved(1.0 / flush(x), 1); }
inline float ex2_approx(float x) { return moved(std::exp2(static_cast<double>(flush(x))), 2); }

}  // namespace emulation

inline float rsqrtf(float x) { return emulation::moved(1.0 / std::sqrt(static_cast<double>(x)), 2); }

// ---------------------------------------------------------------- 16-bit numbers

namespace emulation {

// value in a format with a sign, kExponent bits of exponent and kFraction of fraction, rounded to nearest even once.
template <int kExponent, int kFraction>
uint16_t narrow(double value) {
  constexpr int kBias = (1 << (kExponent - 1)) - 1;
  constexpr int kInfinity = ((1 << kExponent) - 1) << kFraction;
  const int sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;  // CUDA's NaN
  if (std::isinf(value)) return static_cast<uint16_t>(sign | kInfinity);
  if (magnitude == 0) return static_cast<uint16_t>(sign);
  const int exponent =
      std::max(std::ilogb(magnitude), 1 - kBias);  // that of the smallest normal number for subnormal ones
  const int units = static_cast<int>(std::nearbyint(std::scalbn(magnitude, kFraction - exponent)));
  // The leading bit of units, if it is there, adds 1 to the exponent field; so does a carry, up to infinity.
  return static_cast<uint16_t>(sign | std::min(((exponent + kBias - 1) << kFraction) + units, kInfinity));
}

template <int kExponent, int kFraction>
float widen(uint16_t bits) {
  constexpr int kBias = (1 << (kExponent - 1)) - 1;
  constexpr int kTop = (1 << kExponent) - 1;
  const int field = bits >> kFraction & kTop;
  const int fraction = bits & ((1 << kFraction) - 1);
  const int units = field == 0 ? fraction : fraction + (1 << kFraction);
  const float magnitude = field < kTop ? std::scalbn(static_cast<float>(units), std::max(field, 1) - kBias - kFraction)
                          : fraction == 0 ? std::numeric_limits<float>::infinity()
                                          : std::numeric_limits<float>::quiet_NaN();
  return bits & 0x8000 ? -magnitude : magnitude;
}

}  // namespace emulation

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __half2float(__half value) { return emulation::widen<5, 10>(value.bits); }
inline __half __double2half(double value) { return {emulation::narrow<5, 10>(value)}; }
inline __half __float2half_rn(float value) { return __double2half(value); }
inline float __bfloat162float(__nv_bfloat16 value) { return emulation::widen<8, 7>(value.bits); }
inline __nv_bfloat16 __double2bfloat16(double value) { return {emulation::narrow<8, 7>(value)}; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __double2bfloat16(value); }

struct alignas(8) float2 {
  float x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

// ---------------------------------------------------------------- runtime

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulation {

inline cudaError_t last_error = cudaSuccess;

// Takes the launches in place of run(), if it is set: the kernel, blocks, bytes of shared memory, and arguments as they
// lie in constant memory.
inline std::function<void(const void*, unsigned, size_t, const std::string&)> driver;

template <typename T>
void append(std::string& arguments, const T& argument) {
  arguments.resize((arguments.size() + alignof(T) - 1) / alignof(T) * alignof(T));
  arguments.append(reinterpret_cast<const char*>(&argument), sizeof(T));
}

}  // namespace emulation

inline cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ...) <= emulation::kMaxParameterBytes, "too many bytes of kernel arguments");
  const unsigned threads = config->blockDim.x;
  if (config->gridDim.x == 0 || config->gridDim.x > INT32_MAX || threads == 0 || threads > emulation::kMaxThreads ||
      threads % emulation::kWarpSize != 0 || config->dynamicSmemBytes > emulation::kMaxSharedBytes) {
    return emulation::last_error = cudaErrorInvalidConfiguration;
  }
  if (emulation::driver) {
    std::string bytes;
    (emulation::append<Parameters>(bytes, arguments), ...);
    emulation::driver(reinterpret_cast<const void*>(kernel), config->gridDim.x, config->dynamicSmemBytes, bytes);
    return cudaSuccess;
  }
  // By value: a thread that wrote to its arguments would not reach the others.
  emulation::run(config->gridDim.x, threads, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}
