// The outputs of one pixel from its four moments, for all CUDA kernels: maps, gradient, sums.
#pragma once

#include "reduce.cuh"

namespace pspl::cuda {

// What a kernel computes per pixel. Training with l1 has a kernel that computes nothing else.
enum class Work {
  kL1,        // loss and gradient of distance l1
  kL1Stats,   // and statistics
  kDistance,  // loss and gradient of any distance
  kAll,       // and statistics, and a map
};

template <Work kWork>
constexpr bool kHasStats = kWork == Work::kL1Stats || kWork == Work::kAll;

template <Work kWork>
constexpr bool kHasAnyDistance = kWork == Work::kDistance || kWork == Work::kAll;

template <Work kWork>
constexpr int kSumCount = kHasStats<kWork> ? kNumSums : 1;

// Returns the gradient. A pixel that is not valid is outside the image and is not added to the sums.
template <Work kWork, typename T>
__device__ __forceinline__ T emit_pixel(const ForwardParams<T>& p, const Moments<T>& moments, T pivot, T inverse_delta,
                                        T difference, bool valid, int64_t map_offset, Sums<T, kSumCount<kWork>>& sums) {
  const T m_s = similarity<DeviceMath>(moments, pivot, p.twice_c1, p.twice_c2);
  const T m_a = attention<DeviceMath>(m_s, inverse_delta, p.gamma, p.mu);
  const Distance distance = kHasAnyDistance<kWork> ? p.distance : Distance::kL1;
  const PixelLoss<T> pixel = pixel_loss<DeviceMath>(distance, m_a, difference, p.eps_squared);
  sums.value[kLossSum] += valid ? pixel.loss : T(0);
  if constexpr (kHasStats<kWork>) {
    if (valid) {
      sums.value[kAbsErrorSum] += DeviceMath::absolute(difference);
      sums.value[kSquaredErrorSum] += difference * difference;
      sums.value[kSimilaritySum] += m_s;
      sums.value[kAttentionSum] += m_a;
    }
  }
  if constexpr (kWork == Work::kAll) {
    if (valid && p.map.data != nullptr) {
      p.map.data[map_offset] = p.output == Output::kSimilarityMap  ? m_s
                               : p.output == Output::kAttentionMap ? m_a
                                                                   : pixel.loss;
    }
  }
  return pixel.gradient;
}

}  // namespace pspl::cuda
