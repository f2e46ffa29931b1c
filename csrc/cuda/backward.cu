// Dispatch and launch of the backward pass.
#include "backward.cuh"
#include "launch.cuh"
#include "launch.h"

namespace pspl::cuda {
namespace {

template <typename T, typename E>
cudaError_t launch_backward(const BackwardParams<T>& p, cudaStream_t stream) {
  constexpr int kPerThread = 16 / sizeof(T);
  const auto blocks = [&](int per_thread) {
    const int64_t per_block = static_cast<int64_t>(kThreads) * per_thread;
    return (p.numel + per_block - 1) / per_block;
  };
  const bool aligned = reinterpret_cast<uintptr_t>(p.saved_gradient) % (sizeof(T) * kPerThread) == 0 &&
                       reinterpret_cast<uintptr_t>(p.gradient) % (sizeof(E) * kPerThread) == 0;
  return aligned ? launch(&backward_kernel<T, E, kPerThread>, blocks(kPerThread), 0, stream, p)
                 : launch(&backward_kernel<T, E, 1>, blocks(1), 0, stream, p);
}

}  // namespace

template <typename T>
cudaError_t backward(const BackwardParams<T>& params, cudaStream_t stream) {
  switch (params.dtype) {
    case DType::kFloat64:
      if constexpr (sizeof(T) == 8) return launch_backward<T, double>(params, stream);
      return cudaErrorInvalidValue;
    case DType::kFloat16:
      return launch_backward<T, __half>(params, stream);
    case DType::kBFloat16:
      return launch_backward<T, __nv_bfloat16>(params, stream);
    default:
      return launch_backward<T, float>(params, stream);
  }
}

template cudaError_t backward<float>(const BackwardParams<float>&, cudaStream_t);
template cudaError_t backward<double>(const BackwardParams<double>&, cudaStream_t);

}  // namespace pspl::cuda
