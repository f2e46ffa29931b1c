// The interface of the CUDA kernels: plain structs and a stream. A launcher returns the status of its launch; it
// does not allocate or synchronise.
#pragma once

#include <cuda_runtime_api.h>

#include "../pspl_params.h"

namespace pspl::cuda {

// Memory that a forward launch needs besides its outputs.
struct Workspace {
  double* partials;  // [workspace_size()], uninitialised
  unsigned* ticket;  // one counter, 0 before and after a launch; launches that share it must be on one stream
};

// The number of partial sums that forward() writes on a device with this many multiprocessors.
template <typename T>
int64_t workspace_size(const ForwardParams<T>& params, int multiprocessors);

template <typename T>
cudaError_t forward(const ForwardParams<T>& params, const Workspace& workspace, int multiprocessors,
                    cudaStream_t stream);

template <typename T>
cudaError_t backward(const BackwardParams<T>& params, int multiprocessors, cudaStream_t stream);

}  // namespace pspl::cuda
