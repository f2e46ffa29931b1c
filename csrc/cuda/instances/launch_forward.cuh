// The forward kernels of one pair of dtypes. Each pair of kFloat32Pairs has a file here that instantiates them; the
// files compile in parallel.
#pragma once

#include "../generic_forward.cuh"
#include "../strip_forward.cuh"

namespace pspl::cuda {

template <DType kSr, DType kHr>
cudaError_t launch_forward(const ForwardParams<float>& p, const Workspace& workspace, const Device& device,
                           cudaStream_t stream) {
  using Sr = typename ElementOf<kSr>::Type;
  using Hr = typename ElementOf<kHr>::Type;
  return p.radius >= 1 && p.radius <= kMaxStripRadius ? launch_strips<Sr, Hr>(p, workspace, device, stream)
                                                      : launch_generic<float, Sr, Hr>(p, workspace, stream);
}

}  // namespace pspl::cuda
