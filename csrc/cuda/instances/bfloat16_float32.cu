// The strip kernels of bfloat16 images with a float32 target.
#include "../strip_forward.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<float, __nv_bfloat16, float>(const ForwardParams<float>&, Access, const Workspace&,
                                                                const Device&, cudaStream_t);

}  // namespace pspl::cuda
