// The backward pass: one read and one write per element.
#pragma once

#include "device.cuh"

namespace pspl::cuda {

// To nearest even, once.
template <typename E, typename T>
__device__ inline E round_to(T value) {
  if constexpr (std::is_same_v<E, __half>) {
    if constexpr (sizeof(T) == 8) return __double2half(value);
    return __float2half_rn(static_cast<float>(value));
  } else if constexpr (std::is_same_v<E, __nv_bfloat16>) {
    if constexpr (sizeof(T) == 8) return __double2bfloat16(value);
    return __float2bfloat16_rn(static_cast<float>(value));
  } else {
    return static_cast<E>(value);
  }
}

template <typename E, int kPerThread>
struct alignas(sizeof(E) * kPerThread) Packet {
  E element[kPerThread];
};

// kPerThread elements at once when both pointers allow it; the last, incomplete packet goes element by element.
template <typename T, typename E, int kPerThread>
__global__ void __launch_bounds__(kThreads) scale_kernel(const ScaleParams<T> p) {
  // Formed once per thread in the compute type: residual * (upstream / n), rounded once on the way out.
  const T factor = *p.upstream * static_cast<T>(p.factor);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPerThread;
  E* const gradient = static_cast<E*>(p.gradient);
  if (first + kPerThread <= p.numel) {
    const auto in = *reinterpret_cast<const Packet<T, kPerThread>*>(p.residual + first);
    Packet<E, kPerThread> out;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) out.element[i] = round_to<E>(in.element[i] * factor);
    *reinterpret_cast<Packet<E, kPerThread>*>(gradient + first) = out;
  } else {
    for (int64_t i = first; i < p.numel; ++i) gradient[i] = round_to<E>(p.residual[i] * factor);
  }
}

}  // namespace pspl::cuda
