// Dispatch and launch of the backward pass.
#include <algorithm>

#include "backward.cuh"
#include "launch.cuh"
#include "launch.h"

namespace pspl::cuda {
namespace {

// In place there is usually nothing to do, and a grid that fits on the device at once takes the least time. Out of
// place every element is written, one packet per thread.
constexpr int64_t kPersistentBlocks = 8;  // per multiprocessor

template <typename T, typename S, typename E>
cudaError_t launch_backward(const BackwardParams<T>& p, int multiprocessors, cudaStream_t stream) {
  constexpr int kPerThread = 16 / std::max(sizeof(S), sizeof(E));
  const bool in_place = p.gradient == p.saved_gradient;
  const auto blocks = [&](int per_thread) {
    const int64_t per_block = static_cast<int64_t>(kThreads) * per_thread;
    const int64_t all = std::min<int64_t>((p.numel + per_block - 1) / per_block, INT32_MAX);
    return in_place ? std::min(all, kPersistentBlocks * multiprocessors) : all;
  };
  const bool aligned = reinterpret_cast<uintptr_t>(p.saved_gradient) % (sizeof(S) * kPerThread) == 0 &&
                       reinterpret_cast<uintptr_t>(p.gradient) % (sizeof(E) * kPerThread) == 0;
  return aligned ? launch(&backward_kernel<T, S, E, kPerThread>, blocks(kPerThread), 0, stream, p)
                 : launch(&backward_kernel<T, S, E, 1>, blocks(1), 0, stream, p);
}

}  // namespace

template <typename T>
cudaError_t backward(const BackwardParams<T>& p, int multiprocessors, cudaStream_t stream) {
  const auto to = [&](auto element) {
    using E = decltype(element);
    if constexpr (sizeof(T) == 4) {
      if (p.saved_dtype == p.dtype) return launch_backward<T, E, E>(p, multiprocessors, stream);
    }
    if (p.saved_dtype == kDTypeOf<T>) return launch_backward<T, T, E>(p, multiprocessors, stream);
    return cudaErrorInvalidValue;
  };
  switch (p.dtype) {
    case DType::kFloat64:
      if constexpr (sizeof(T) == 8) return to(double{});
      return cudaErrorInvalidValue;
    case DType::kFloat16:
      return to(__half{});
    case DType::kBFloat16:
      return to(__nv_bfloat16{});
    default:
      return to(float{});
  }
}

template cudaError_t backward<float>(const BackwardParams<float>&, int, cudaStream_t);
template cudaError_t backward<double>(const BackwardParams<double>&, int, cudaStream_t);

}  // namespace pspl::cuda
