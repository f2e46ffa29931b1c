// The kernels of float32 images.
#include "launch_forward.cuh"

namespace pspl::cuda {

template cudaError_t launch_forward<DType::kFloat32, DType::kFloat32>(const ForwardParams<float>&, const Workspace&,
                                                                      const Device&, cudaStream_t);

}  // namespace pspl::cuda
