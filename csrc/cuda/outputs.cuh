// From the four moments of a pixel to the outputs of a launch, for all forward kernels: map, gradient, loss and
// statistics.
#pragma once

#include "primitives.cuh"

namespace pspl::cuda {

// ---------------------------------------------------------------- one pixel

// One thread's part of the first kCount sums of enum Sum.
template <typename T, int kCount>
struct Sums {
  T value[kCount] = {};
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

// Returns the gradient. `inside` is 1, or 0 for a pixel outside the image, which is not added to the sums. `counts`
// selects whether its loss and error are added; it may be true where they are known to be 0. A factor costs no
// predicate, and NaN times 0 is harmless: a NaN outside the image comes from a pixel in it, whose own terms are NaN.
template <Work kWork, typename T>
__device__ __forceinline__ T emit_pixel(const ForwardParams<T>& p, const Moments<T>& moments, T pivot, T inverse_delta,
                                        T difference, bool counts, T inside, int64_t map_offset,
                                        Sums<T, kSumCount<kWork>>& sums) {
  const T m_s = similarity<DeviceMath>(moments, pivot, p.twice_c1, p.twice_c2);
  const T m_a = attention<DeviceMath>(m_s, inverse_delta, p.gamma, p.mu);
  const Distance distance = kHasAnyDistance<kWork> ? p.distance : Distance::kL1;
  const PixelLoss<T> pixel = pixel_loss<DeviceMath>(distance, m_a, difference, p.eps_squared);
  sums.value[kLossSum] += counts ? pixel.loss : T(0);
  if constexpr (kHasStats<kWork>) {
    if (counts) {
      sums.value[kAbsErrorSum] += DeviceMath::absolute(difference);
      sums.value[kSquaredErrorSum] += difference * difference;
    }
    sums.value[kSimilaritySum] += inside * m_s;
    sums.value[kAttentionSum] += inside * m_a;
  }
  if constexpr (kWork == Work::kAll) {
    if (inside != T(0) && p.map.data != nullptr) {
      p.map.data[map_offset] = p.output == Output::kSimilarityMap  ? m_s
                               : p.output == Output::kAttentionMap ? m_a
                                                                   : pixel.loss;
    }
  }
  return pixel.gradient;
}

// ---------------------------------------------------------------- sums of a launch
//
// Without a second launch and without float atomics: the order of the additions does not depend on scheduling, so the
// loss is bitwise reproducible.

struct ReduceShared {
  double warp[kNumSums][kWarps];
  bool is_last;
};

// The block's sum of value, on thread 0.
__device__ inline double block_sum(double value, double (&warp)[kWarps]) {
  value = warp_sum(value);
  if (threadIdx.x % kLanes == 0) warp[threadIdx.x / kLanes] = value;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kWarps; ++i) total += warp[i];
  }
  return total;
}

// Every thread of every block calls this once, at the end. workspace.partials is [kCount][gridDim.x].
template <typename T, int kCount>
__device__ void reduce_and_store(const ForwardParams<T>& p, const Sums<T, kCount>& sums, const Workspace& workspace,
                                 ReduceShared& shared) {
  if (p.loss == nullptr && p.stats == nullptr) return;
  const unsigned blocks = gridDim.x;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const double total = block_sum(static_cast<double>(sums.value[i]), shared.warp[i]);
    if (threadIdx.x == 0) workspace.partials[static_cast<int64_t>(i) * blocks + blockIdx.x] = total;
  }
  if (threadIdx.x == 0) {
    // The partial sums must be visible to the block that draws the last ticket. atomicInc wraps to 0 at the last block:
    // the counter resets itself for the next launch.
    __threadfence();
    shared.is_last = atomicInc(workspace.ticket, blocks - 1) == blocks - 1;
    // This fence acquires what the other blocks wrote; the barrier below makes it visible to the other threads.
    if (shared.is_last) __threadfence();
  }
  __syncthreads();
  if (!shared.is_last) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    double value = 0;
    for (unsigned block = threadIdx.x; block < blocks; block += kThreads) {
      // Bypasses L1, which is not coherent with the writes of other blocks.
      value += __ldcg(&workspace.partials[static_cast<int64_t>(i) * blocks + block]);
    }
    // shared.warp[i] was last read by thread 0 before the barrier above.
    const double total = block_sum(value, shared.warp[i]);
    if (threadIdx.x == 0) {
      store_sum(p, i, total);
    }
  }
}

}  // namespace pspl::cuda
