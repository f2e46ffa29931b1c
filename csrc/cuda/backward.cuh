// The backward pass: one read and one write per element.
#pragma once

#include "primitives.cuh"

namespace pspl::cuda {

template <typename E, int kPerThread>
struct alignas(sizeof(E) * kPerThread) Packet {
  E element[kPerThread];
};

// kPerThread elements at once where both pointers allow it; the last, incomplete packet goes element by element.
template <typename T, typename E, int kPerThread>
__global__ void __launch_bounds__(kThreads) backward_kernel(const BackwardParams<T> p) {
  const T factor = *p.grad_output * p.factor;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPerThread;
  E* const gradient = static_cast<E*>(p.gradient);
  if (first + kPerThread <= p.numel) {
    const auto in = *reinterpret_cast<const Packet<T, kPerThread>*>(p.saved_gradient + first);
    Packet<E, kPerThread> out;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) out.element[i] = round_to<E>(in.element[i] * factor);
    *reinterpret_cast<Packet<E, kPerThread>*>(gradient + first) = out;
  } else {
    for (int64_t i = first; i < p.numel; ++i) gradient[i] = round_to<E>(p.saved_gradient[i] * factor);
  }
}

}  // namespace pspl::cuda
