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

}  // namespace pspl::cuda
