// The kernels of bfloat16 images.
#include "launch_forward.cuh"

namespace pspl::cuda {

template cudaError_t launch_forward<DType::kBFloat16, DType::kBFloat16>(const ForwardParams<float>&, const Workspace&,
                                                                        const Device&, cudaStream_t);

}  // namespace pspl::cuda
