// From the four moments of a pixel to its outputs, for all forward kernels: map, gradient, loss and statistics.
#pragma once

#include "primitives.cuh"
#include "reduction.cuh"

namespace pspl::cuda {

// The arguments of similarity(): s = x + y and d = x - y in the window of one pixel.
template <typename T>
struct Moments {
  T mean_s;
  T mean_d;
  T variance_s;  // + 2 C2
  T variance_d;
};

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

// Returns the gradient. `in_image` is 1, or 0 for a pixel outside the image, which is not added to the sums. `counts`
// selects whether its loss and error are added; it may be true where they are known to be 0. A factor costs no
// predicate, and NaN times 0 is harmless: a NaN outside the image comes from a pixel in it, whose own terms are NaN.
template <Work kWork, typename T>
__device__ __forceinline__ T emit_pixel(const ForwardParams<T>& p, const Moments<T>& moments, T inverse_delta,
                                        T difference, bool counts, T in_image, int64_t map_offset,
                                        ThreadSums<T, kSumCount<kWork>>& sums) {
  const T m_s = similarity<DeviceMath>(moments.mean_s, moments.mean_d, moments.variance_s, moments.variance_d,
                                       p.twice_c1, p.twice_c2);
  const T m_a = attention<DeviceMath>(m_s, inverse_delta, p.gamma, p.mu);
  const Distance distance = kHasAnyDistance<kWork> ? p.distance : Distance::kL1;
  const PixelLoss<T> pixel = pixel_loss<DeviceMath>(distance, m_a, difference, p.eps_squared);
  sums.value[kLossSum] += counts ? pixel.loss : T(0);
  if constexpr (kHasStats<kWork>) {
    if (counts) {
      sums.value[kAbsErrorSum] += DeviceMath::absolute(difference);
      sums.value[kSquaredErrorSum] += difference * difference;
    }
    sums.value[kSimilaritySum] += in_image * m_s;
    sums.value[kAttentionSum] += in_image * m_a;
  }
  if constexpr (kWork == Work::kAll) {
    if (in_image != T(0) && p.map.data != nullptr) {
      p.map.data[map_offset] = p.output == Output::kSimilarityMap  ? m_s
                               : p.output == Output::kAttentionMap ? m_a
                                                                   : pixel.loss;
    }
  }
  return pixel.gradient;
}

}  // namespace pspl::cuda
