// The backward pass. grad_output is usually 1, and the saved gradient is then the gradient. In place, the kernel reads
// the scalar on the device and returns, without host synchronisation, also inside a captured graph.
#pragma once

#include "primitives.cuh"

namespace pspl::cuda {

template <typename E, int kPerThread>
struct alignas(sizeof(E) * kPerThread) Packet {
  E element[kPerThread];
};

// S is the saved element type, E the gradient's. Threads stride over packets of kPerThread elements, which are aligned
// if kPerThread is above 1; the last, incomplete packet goes element by element.
template <typename T, typename S, typename E, int kPerThread>
__global__ void __launch_bounds__(kThreads) backward_kernel(const BackwardParams<T> p) {
  const T factor = *p.grad_output * p.factor;
  const S* const saved = static_cast<const S*>(p.saved_gradient);
  E* const gradient = static_cast<E*>(p.gradient);
  if (p.gradient == p.saved_gradient && factor == T(1)) return;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kPerThread;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPerThread; first < p.numel;
       first += step) {
    if (first + kPerThread <= p.numel) {
      const auto in = *reinterpret_cast<const Packet<S, kPerThread>*>(saved + first);
      Packet<E, kPerThread> out;
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) out.element[i] = round_to<E>(convert<T>(in.element[i]) * factor);
      *reinterpret_cast<Packet<E, kPerThread>*>(gradient + first) = out;
    } else {
      for (int64_t i = first; i < p.numel; ++i) gradient[i] = round_to<E>(convert<T>(saved[i]) * factor);
    }
  }
}

}  // namespace pspl::cuda
