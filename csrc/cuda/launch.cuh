// How every kernel is launched.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "block.h"

namespace pspl::cuda {

// A runtime call instead of <<<>>> lets the tests run the launchers, unmodified, on a CPU.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, arguments...);
  return cudaGetLastError();  // the same status; it also clears the error, which torch's own checks would report again
}

}  // namespace pspl::cuda
