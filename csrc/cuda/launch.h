// The interface of the CUDA kernels: plain structs and a stream. A launcher returns the status of its launch; it
// does not allocate or synchronise.
#pragma once

#include <cuda_runtime_api.h>

#include "../pspl_params.h"
#include "plan.h"

namespace pspl::cuda {

// Memory that a forward launch needs besides its outputs.
struct Workspace {
  double* partials;  // [workspace_size()], uninitialised
  unsigned* ticket;  // one counter, 0 before and after a launch; launches that share it must be on one stream
};

// The number of partial sums that forward() may write.
template <typename T>
int64_t workspace_size(const ForwardParams<T>& params) {
  return kNumSums * most_blocks(params.planes(), params.height, params.width);
}

template <typename T>
cudaError_t forward(const ForwardParams<T>& params, const Workspace& workspace, const Device& device,
                    cudaStream_t stream);

template <typename T>
cudaError_t backward(const BackwardParams<T>& params, const Device& device, cudaStream_t stream);

}  // namespace pspl::cuda
