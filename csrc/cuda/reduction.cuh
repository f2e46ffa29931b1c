// The sums of a launch over all its threads, without a second launch and without float atomics: the order of the
// additions does not depend on scheduling, so the loss is bitwise reproducible.
#pragma once

#include "kernels.h"
#include "primitives.cuh"

namespace pspl::cuda {

// One thread's part of the first kCount sums of enum Sum.
template <typename T, int kCount>
struct ThreadSums {
  T value[kCount] = {};
};

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
__device__ void reduce_and_store(const ForwardParams<T>& p, const ThreadSums<T, kCount>& sums,
                                 const Workspace& workspace, ReduceShared& shared) {
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
