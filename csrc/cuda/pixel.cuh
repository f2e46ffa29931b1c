// What happens to a pixel once its four moments are known, the same in every CUDA kernel: maps, residual, sums.
#pragma once

#include "reduce.cuh"

namespace pspl::cuda {

// kExtras: statistics or a map may be asked for. Training asks for neither, and pays for neither.
template <bool kExtras>
constexpr int kSumsOf = kExtras ? kMaxSums : 1;

template <bool kExtras, typename T>
__device__ __forceinline__ T pixel_residual(const Params<T>& p, const Moments<T>& moments, T pivot, T inverse_width,
                                            T difference, int64_t map_offset, Sums<T, kSumsOf<kExtras>>& sums) {
  const T similar = similarity(moments, pivot, p.twice_c1, p.twice_c2);
  const T attentive = attention(similar, inverse_width, p.gamma, p.mu);
  const Weighted<T> term = weighted(p.distance, attentive, difference, p.eps_squared);
  sums.value[0] += term.loss;
  if constexpr (kExtras) {
    sums.value[1 + kAbsError] += absolute(difference);
    sums.value[1 + kSquaredError] += difference * difference;
    sums.value[1 + kSimilarityStat] += similar;
    sums.value[1 + kAttentionStat] += attentive;
    if (p.map.data != nullptr) {
      p.map.data[map_offset] = p.map_kind == MapKind::kSimilarity  ? similar
                               : p.map_kind == MapKind::kAttention ? attentive
                                                                   : term.loss;
    }
  }
  return term.residual;
}

}  // namespace pspl::cuda
