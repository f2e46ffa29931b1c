// What happens to a pixel once its four moments are known, the same in every CUDA kernel: maps, residual, sums.
#pragma once

#include "reduce.cuh"

namespace pspl::cuda {

// How much a kernel can do with a pixel. Training with the paper's distance pays for nothing else.
enum class Work {
  kL1,           // sum and residual of distance l1
  kL1WithStats,  // and statistics
  kDistance,     // sum and residual of any distance
  kEverything,   // and statistics, and a map
};

template <Work kWork>
constexpr bool kHasStats = kWork == Work::kL1WithStats || kWork == Work::kEverything;

template <Work kWork>
constexpr int kSumsOf = kHasStats<kWork> ? kMaxSums : 1;

// Returns the residual. A pixel that is not valid lies beside the image and counts for nothing.
template <Work kWork, typename T>
__device__ __forceinline__ T pixel_residual(const Params<T>& p, const Moments<T>& moments, T pivot, T inverse_width,
                                            T difference, bool valid, int64_t map_offset,
                                            Sums<T, kSumsOf<kWork>>& sums) {
  const T similar = similarity(moments, pivot, p.twice_c1, p.twice_c2);
  const T attentive = attention(similar, inverse_width, p.gamma, p.mu);
  const Distance distance = kWork == Work::kL1 || kWork == Work::kL1WithStats ? Distance::kL1 : p.distance;
  const Weighted<T> term = weighted(distance, attentive, difference, p.eps_squared);
  sums.value[0] += valid ? term.loss : T(0);
  if constexpr (kHasStats<kWork>) {
    if (valid) {
      sums.value[1 + kAbsError] += absolute(difference);
      sums.value[1 + kSquaredError] += difference * difference;
      sums.value[1 + kSimilarityStat] += similar;
      sums.value[1 + kAttentionStat] += attentive;
    }
  }
  if constexpr (kWork == Work::kEverything) {
    if (valid && p.map.data != nullptr) {
      p.map.data[map_offset] = p.map_kind == MapKind::kSimilarity  ? similar
                               : p.map_kind == MapKind::kAttention ? attentive
                                                                   : term.loss;
    }
  }
  return term.residual;
}

}  // namespace pspl::cuda
