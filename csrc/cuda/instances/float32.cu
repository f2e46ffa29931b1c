// The strip kernels of float32 images.
#include "../strip_forward.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<float, float, float>(const ForwardParams<float>&, Access, const Workspace&,
                                                        const Device&, cudaStream_t);

}  // namespace pspl::cuda
