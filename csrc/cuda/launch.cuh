// The one place where a kernel starts. A plain runtime call instead of <<<>>>, so that the tests can run the launchers,
// unmodified, on a CPU.
#pragma once

#include <cuda_runtime.h>

#include "primitives.cuh"

namespace pspl::cuda {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, arguments...);
  return cudaGetLastError();  // the same status, and no error is left for torch's own checks to find
}

}  // namespace pspl::cuda
