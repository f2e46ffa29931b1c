// All that a kernel is told: sizes, strides, pointers, constants. Plain data without torch and without
// ownership, so that the same struct is a CUDA kernel argument, a CPU argument and the emulator's input.
#pragma once

#include <cstdint>

// Always inlined: kernels compiled for several instruction sets must not share one copy of a function.
#if defined(__CUDACC__)
#define PSPL_FN __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define PSPL_FN inline __attribute__((always_inline))
#else
#define PSPL_FN inline
#endif

namespace pspl {

enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

// The next four are the public keywords; the numbers are the contract with pspl_cuda/config.py.
enum class Distance : int32_t { kL1, kL2, kCharbonnier };
enum class Padding : int32_t { kZeros, kReflect, kReplicate };
enum class Reduction : int32_t { kMean, kSum, kNone };
enum class MapKind : int32_t { kLoss, kSimilarity, kAttention };

// Leading dimensions in front of the rows and columns: [.., .., C, H, W], missing ones have size 1.
constexpr int kLeadingDims = 3;

// A CUDA kernel takes its taps by value, inside the 4 KiB of kernel arguments: this bounds the window.
constexpr int kMaxRadius = 255;

// Statistics of one call, in the order in which they are stored.
enum Stat : int { kAbsError, kSquaredError, kSimilarityStat, kAttentionStat, kNumStats };

// Strides, all in elements.
struct Layout {
  int64_t leading[kLeadingDims];
  int64_t row;
  int64_t column;

  PSPL_FN int64_t plane_offset(int64_t i0, int64_t i1, int64_t i2) const {
    return i0 * leading[0] + i1 * leading[1] + i2 * leading[2];
  }
};

struct Input {
  const void* data;
  DType dtype;
  Layout stride;
};

// Per-pixel output in the compute type. data is null when nobody asked for it.
template <typename T>
struct Output {
  T* data;
  Layout stride;
};

// T is the compute type: float, or double when an input is float64.
template <typename T>
struct Params {
  // Sizes; every one is at least 1.
  int64_t leading[kLeadingDims];
  int64_t height;
  int64_t width;

  Input sr;
  Input hr;

  // d(loss * n)/d(sr) for reduction mean, d(loss)/d(sr) for the others: the gradient before the factor
  // upstream / n. Kept apart from 1/n so that it neither underflows nor loses digits.
  Output<T> residual;
  Output<T> map;
  MapKind map_kind;

  Padding padding;
  Distance distance;

  int32_t radius;          // window_size = 2 * radius + 1
  T taps[kMaxRadius + 1];  // Gaussian weight at distance 0..radius from the centre; the window sums to 1
  T twice_c1;              // 2 (k1 L)^2
  T twice_c2;              // 2 (k2 L)^2
  T alpha;
  T beta;
  T gamma;
  T mu;
  T eps_squared;

  T step;                   // used when step_tensor is null
  const void* step_tensor;  // 0-dim, in the kernel's memory; read by the kernel
  DType step_dtype;         // kFloat32 or kFloat64

  double loss_scale;  // 1/n for mean, 1 for sum
  T* loss;            // 0-dim; null when no sum is asked for
  T* stats;           // [kNumStats]; null when not asked for

  PSPL_FN int64_t planes() const { return leading[0] * leading[1] * leading[2]; }
  PSPL_FN int64_t numel() const { return planes() * height * width; }
};

// The backward pass: gradient = residual * upstream * factor, element by element over dense memory, formed in the
// compute type and rounded once to the gradient's. The two may be the same memory.
template <typename T>
struct ScaleParams {
  const T* residual;
  const T* upstream;  // 0-dim, in the kernel's memory
  double factor;      // loss_scale for sr, -loss_scale for hr
  void* gradient;
  DType dtype;
  int64_t numel;
};

}  // namespace pspl
