// What ops_cuda.cpp may call: the CUDA kernels behind plain structs and a stream. A launcher returns the launch's
// status; it neither allocates nor waits.
#pragma once

#include <cuda_runtime_api.h>

#include "../pspl_params.h"

namespace pspl::cuda {

// Memory that a launch needs besides its outputs.
struct Scratch {
  double* partials;  // forward_partials() of them, uninitialised
  unsigned* ticket;  // one, 0 before the launch and again after it
};

// How many partial sums forward() will write on a device with this many multiprocessors.
template <typename T>
int64_t forward_partials(const Params<T>& params, int multiprocessors);

template <typename T>
cudaError_t forward(const Params<T>& params, const Scratch& scratch, int multiprocessors, cudaStream_t stream);

template <typename T>
cudaError_t scale(const ScaleParams<T>& params, cudaStream_t stream);

}  // namespace pspl::cuda
