// The backward pass: kernel, dispatch and launch. grad_output is usually 1, and the saved gradient is then the
// gradient. In place, the kernel reads the scalar on the device and returns, without host synchronisation, also inside
// a captured graph.
#include <algorithm>

#include "kernels.h"
#include "launch.cuh"
#include "primitives.cuh"

namespace pspl::cuda {
namespace {

template <typename E, int kPerThread>
struct alignas(sizeof(E) * kPerThread) Packet {
  E element[kPerThread];
};

// S is the saved element type, E the gradient's. Threads stride over packets of kPerThread elements, which are aligned
// if kPerThread is above 1; the last, incomplete packet goes element by element.
template <typename S, typename E, int kPerThread>
__global__ void __launch_bounds__(kThreads) backward_kernel(const BackwardParams p) {
  const float factor = *p.grad_output * p.sign;
  const S* const saved = static_cast<const S*>(p.saved_gradient);
  E* const gradient = static_cast<E*>(p.gradient);
  if (p.gradient == p.saved_gradient && factor == 1.0f) return;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kPerThread;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPerThread; first < p.numel;
       first += stride) {
    if (first + kPerThread <= p.numel) {
      const auto in = *reinterpret_cast<const Packet<S, kPerThread>*>(saved + first);
      Packet<E, kPerThread> out;
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) out.element[i] = round_to<E>(read<float, S>(in.element, i) * factor);
      *reinterpret_cast<Packet<E, kPerThread>*>(gradient + first) = out;
    } else {
      for (int64_t i = first; i < p.numel; ++i) gradient[i] = round_to<E>(read<float, S>(saved, i) * factor);
    }
  }
}

// In place there is usually nothing to do, and a grid that fits on the device at once takes the least time. Out of
// place every element is written, one packet per thread.
constexpr int64_t kPersistentBlocks = 8;  // per multiprocessor

template <typename S, typename E>
cudaError_t launch_backward(const BackwardParams& p, const Device& device, cudaStream_t stream) {
  constexpr int kPerThread = 16 / std::max(sizeof(S), sizeof(E));
  const auto blocks = [&](int per_thread) {
    const int64_t all = std::min<int64_t>(ceil_div(p.numel, int64_t{kThreads} * per_thread), INT32_MAX);
    return p.gradient == p.saved_gradient ? std::min(all, kPersistentBlocks * device.multiprocessors) : all;
  };
  const bool aligned = reinterpret_cast<uintptr_t>(p.saved_gradient) % (sizeof(S) * kPerThread) == 0 &&
                       reinterpret_cast<uintptr_t>(p.gradient) % (sizeof(E) * kPerThread) == 0;
  return aligned ? launch(&backward_kernel<S, E, kPerThread>, blocks(kPerThread), 0, stream, p)
                 : launch(&backward_kernel<S, E, 1>, blocks(1), 0, stream, p);
}

}  // namespace

cudaError_t backward(const BackwardParams& p, const Device& device, cudaStream_t stream) {
  switch (p.dtype) {
    case DType::kFloat32:
      return launch_backward<float, float>(p, device, stream);
    case DType::kFloat16:
      return launch_backward<float, __half>(p, device, stream);
    case DType::kBFloat16:
      return p.saved_dtype == DType::kFloat32 ? launch_backward<float, __nv_bfloat16>(p, device, stream)
                                              : launch_backward<__nv_bfloat16, __nv_bfloat16>(p, device, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace pspl::cuda
