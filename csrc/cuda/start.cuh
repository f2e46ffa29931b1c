// The one place where a kernel starts. A plain runtime call instead of <<<>>>, so that tests/emulation can run these
// launchers, unmodified, on a CPU.
#pragma once

#include <cuda_runtime.h>

#include "device.cuh"

namespace pspl::cuda {

template <typename... Parameters, typename... Arguments>
cudaError_t start(void (*kernel)(Parameters...), unsigned blocks, size_t shared_bytes, cudaStream_t stream,
                  const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, arguments...);
  return cudaGetLastError();  // the same status, and nothing is left behind for torch's own checks to find
}

}  // namespace pspl::cuda
