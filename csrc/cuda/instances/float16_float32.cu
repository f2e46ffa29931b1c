// The strip kernels of float16 images with a float32 target.
#include "../strip_forward.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<float, __half, float>(const ForwardParams<float>&, Access, const Workspace&,
                                                         const Device&, cudaStream_t);

}  // namespace pspl::cuda
