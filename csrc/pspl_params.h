// The parameters of a kernel: sizes, strides, pointers and constants. Plain data without torch and without ownership:
// the same struct is a CUDA kernel argument, a CPU argument and the input of the emulated kernels in the tests.
#pragma once

#include <cstdint>

// Always inlined: translation units compiled for different instruction sets must not share one copy of a function.
#if defined(__CUDACC__)
#define PSPL_FN __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define PSPL_FN inline __attribute__((always_inline))
#else
#define PSPL_FN inline
#endif

namespace pspl {

enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

// The values of the next three enums are positions in the tuples of pspl_cuda/config.py.
enum class Distance : int32_t { kL1, kL2, kCharbonnier, kCount };
enum class Padding : int32_t { kZeros, kReflect, kReplicate, kCount };
// The result of a forward pass: the reduced loss, or one value per pixel.
enum class Output : int32_t { kMean, kSum, kLossMap, kSimilarityMap, kAttentionMap, kCount };

// Images are [.., .., C, H, W]: missing leading dimensions have size 1.
constexpr int kLeadingDims = 3;

// Bounds the window: a CUDA kernel takes its taps by value, within the 4 KiB of kernel arguments.
constexpr int kMaxRadius = 255;

// The sums of a forward pass. Every kernel keeps them in this order; the statistics are all but the first.
enum Sum : int { kLossSum, kAbsErrorSum, kSquaredErrorSum, kSimilaritySum, kAttentionSum, kNumSums };
constexpr int kNumStats = kNumSums - 1;

// In elements.
struct Strides {
  int64_t leading[kLeadingDims];
  int64_t row;
  int64_t column;

  PSPL_FN int64_t plane_offset(int64_t i0, int64_t i1, int64_t i2) const {
    return i0 * leading[0] + i1 * leading[1] + i2 * leading[2];
  }
};

struct InputImage {
  const void* data;
  DType dtype;
  Strides strides;
};

// Per-pixel output in the compute type. data is null if it is not requested.
template <typename T>
struct OutputImage {
  T* data;
  Strides strides;
};

// The saved gradient in its own dtype. data is null if it is not requested.
struct GradientImage {
  void* data;
  DType dtype;
  Strides strides;
};

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// The numbers of a loss as its caller gives them: CONSTANTS in pspl_cuda/config.py, in its order.
struct Constants {
  double alpha, beta, gamma, mu, data_range, sigma, k1, k2, eps;
};
constexpr int kNumConstants = sizeof(Constants) / sizeof(double);

// T is the compute type: float, or double if an input is float64. set_constants() in pspl_math.h fills the numbers.
template <typename T>
struct ForwardParams {
  // Sizes; every one is at least 1.
  int64_t leading[kLeadingDims];
  int64_t height;
  int64_t width;

  InputImage sr;
  InputImage hr;

  // d(loss)/d(sr) for grad_output = 1, formed in T and rounded once: to T or, for a bfloat16 sr, to bfloat16.
  GradientImage gradient;
  OutputImage<T> map;
  Output output;

  Padding padding;
  Distance distance;

  int32_t radius;          // window_size = 2 * radius + 1
  T taps[kMaxRadius + 1];  // Gaussian weights at distance 0..radius from the centre; the window sums to 1
  T twice_c1;              // 2 (k1 L)^2
  T twice_c2;              // 2 (k2 L)^2
  T alpha;
  T beta;
  T gamma;  // times attention_scale
  T mu;
  T eps_squared;  // charbonnier: times attention_scale^2

  T step;                   // used if step_tensor is null
  const void* step_tensor;  // 0-dim, in the kernel's memory, read by the kernel
  DType step_dtype;         // kFloat32 or kFloat64

  // The factor of gamma and eps that includes the 1/n of a mean and the weight of the loss; see set_constants().
  double attention_scale;
  T* loss;   // 0-dim; null if no reduced loss is requested
  T* stats;  // [kNumStats]; null if not requested

  PSPL_FN int64_t planes() const { return leading[0] * leading[1] * leading[2]; }
  PSPL_FN int64_t numel() const { return planes() * height * width; }
};

// gradient = sign * grad_output * saved_gradient, element by element over dense memory, formed in float32 and rounded
// once to dtype, which is not float64. saved_dtype is float32 or, like dtype, bfloat16. In place if gradient is
// saved_gradient; a product of 1 then leaves the memory unchanged.
struct BackwardParams {
  const void* saved_gradient;
  DType saved_dtype;
  const float* grad_output;  // 0-dim, in the kernel's memory
  float sign;                // 1 for sr, -1 for hr
  void* gradient;
  DType dtype;
  int64_t numel;
};

}  // namespace pspl
