// Reading images of any dtype, and the few device facts that every CUDA kernel here shares. No torch.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "../pspl_math.h"

namespace pspl::cuda {

constexpr int kLanes = 32;
constexpr int kWarps = 4;
constexpr int kThreads = kLanes * kWarps;
constexpr unsigned kFullWarp = 0xffffffffu;

// Element tag for images whose dtype is looked up at run time: mixed dtypes, and float64.
struct AnyType {};

template <typename T>
__device__ inline T convert(float value) {
  return static_cast<T>(value);
}
template <typename T>
__device__ inline T convert(double value) {
  return static_cast<T>(value);
}
template <typename T>
__device__ inline T convert(__half value) {
  return static_cast<T>(__half2float(value));
}
template <typename T>
__device__ inline T convert(__nv_bfloat16 value) {
  return static_cast<T>(__bfloat162float(value));
}

// Element of an image at an offset, in the compute type.
template <typename T, typename E>
struct Reader {
  const E* data;
  __device__ explicit Reader(const Input& input) : data(static_cast<const E*>(input.data)) {}
  __device__ T operator()(int64_t offset) const { return convert<T>(data[offset]); }
};

template <typename T>
struct Reader<T, AnyType> {
  const void* data;
  DType dtype;
  __device__ explicit Reader(const Input& input) : data(input.data), dtype(input.dtype) {}
  __device__ T operator()(int64_t offset) const {
    switch (dtype) {
      case DType::kFloat64:
        return convert<T>(static_cast<const double*>(data)[offset]);
      case DType::kFloat16:
        return convert<T>(static_cast<const __half*>(data)[offset]);
      case DType::kBFloat16:
        return convert<T>(static_cast<const __nv_bfloat16*>(data)[offset]);
      default:
        return convert<T>(static_cast<const float*>(data)[offset]);
    }
  }
};

__device__ inline int64_t plane_offset(const Layout& stride, int64_t i0, int64_t i1, int64_t i2) {
  return i0 * stride.leading[0] + i1 * stride.leading[1] + i2 * stride.leading[2];
}

// Where Eq. 8's step comes from: a number of the launch, or device memory, so that a captured graph follows the
// schedule.
template <typename T>
__device__ inline T inverse_width_of(const Params<T>& p) {
  T step = p.step;
  if (p.step_tensor != nullptr) {
    step = p.step_dtype == DType::kFloat64 ? static_cast<T>(*static_cast<const double*>(p.step_tensor))
                                           : static_cast<T>(*static_cast<const float*>(p.step_tensor));
  }
  return inverse_width(width(p.alpha, step, p.beta));
}

}  // namespace pspl::cuda
