// The sums of a launch, added in an order that does not depend on which block finishes when: no atomics on floats, so
// the loss is bitwise repeatable, and no second launch.
#pragma once

#include "device.cuh"

namespace pspl::cuda {

// The loss, and behind it the statistics when they are asked for.
constexpr int kMaxSums = 1 + kNumStats;

struct Workspace {
  double* partials;  // [kMaxSums][gridDim.x]; every entry that is read was written by this launch
  unsigned* ticket;  // 0 before and after each launch; launches that share it must follow one another on one stream
};

template <typename T, int kSums>
struct Sums {
  T value[kSums] = {};
};

struct ReduceShared {
  double warp[kMaxSums][kWarps];
  bool is_last;
};

__device__ inline double warp_sum(double value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

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

// Every thread of every block calls this once, at the end.
template <typename T, int kSums>
__device__ void reduce_and_store(const Params<T>& p, const Sums<T, kSums>& sums, const Workspace& workspace,
                                 ReduceShared& shared) {
  if (p.loss == nullptr && p.stats == nullptr) return;
  const unsigned blocks = gridDim.x;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const double total = block_sum(static_cast<double>(sums.value[i]), shared.warp[i]);
    if (threadIdx.x == 0) workspace.partials[static_cast<int64_t>(i) * blocks + blockIdx.x] = total;
  }
  if (threadIdx.x == 0) {
    // The partial sums must be visible to the block that draws the last ticket. atomicInc wraps to 0 at the last block:
    // the counter resets itself for the next launch.
    __threadfence();
    shared.is_last = atomicInc(workspace.ticket, blocks - 1) == blocks - 1;
    // The thread that has read the ticket acquires what the other blocks wrote; the barrier hands it to the others.
    if (shared.is_last) __threadfence();
  }
  __syncthreads();
  if (!shared.is_last) return;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    double value = 0;
    for (unsigned block = threadIdx.x; block < blocks; block += kThreads) {
      // Past L1, which is not coherent with what other blocks wrote.
      value += __ldcg(&workspace.partials[static_cast<int64_t>(i) * blocks + block]);
    }
    // shared.warp[i] was last read by thread 0 before the barrier above.
    const double total = block_sum(value, shared.warp[i]);
    if (threadIdx.x == 0) {
      if (i == 0 && p.loss != nullptr) *p.loss = static_cast<T>(total * p.loss_scale);
      // Divided, not scaled: the mean of n ones is 1.
      if (i > 0 && p.stats != nullptr) p.stats[i - 1] = static_cast<T>(total / static_cast<double>(p.numel()));
    }
  }
}

}  // namespace pspl::cuda
