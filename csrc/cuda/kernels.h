// The interface of the CUDA kernels: plain structs and a stream. A launcher returns the status of its launch; it does
// not allocate or synchronise.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../pspl_params.h"

namespace pspl::cuda {

struct Device {
  int multiprocessors;
  int64_t shared_bytes;  // of one multiprocessor
};

// Memory that a forward launch needs besides its outputs.
struct Workspace {
  double* partials;  // [workspace_size()], uninitialised
  unsigned* ticket;  // one counter, 0 before and after a launch; launches that share it must be on one stream
};

struct DTypePair {
  DType sr, hr;
};

// The images that forward<float>() reads: of one dtype, or sr of 16 bits and hr float32, as under autocast. Each pair
// has a file in instances/. forward<double>() reads float64 only.
inline constexpr DTypePair kFloat32Pairs[] = {
    {DType::kFloat32, DType::kFloat32}, {DType::kFloat16, DType::kFloat16},  {DType::kBFloat16, DType::kBFloat16},
    {DType::kFloat16, DType::kFloat32}, {DType::kBFloat16, DType::kFloat32},
};

constexpr bool has_kernels(DType sr, DType hr) {
  for (const DTypePair& pair : kFloat32Pairs) {
    if (pair.sr == sr && pair.hr == hr) return true;
  }
  return sr == DType::kFloat64 && hr == DType::kFloat64;
}

// The number of partial sums that forward() may write.
template <typename T>
int64_t workspace_size(const ForwardParams<T>& params);

template <typename T>
cudaError_t forward(const ForwardParams<T>& params, const Workspace& workspace, const Device& device,
                    cudaStream_t stream);

cudaError_t backward(const BackwardParams& params, const Device& device, cudaStream_t stream);

}  // namespace pspl::cuda
