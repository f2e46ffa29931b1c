// The kernels of float16 sr and float32 hr.
#include "launch_forward.cuh"

namespace pspl::cuda {

template cudaError_t launch_forward<DType::kFloat16, DType::kFloat32>(const ForwardParams<float>&, const Workspace&,
                                                                      const Device&, cudaStream_t);

}  // namespace pspl::cuda
