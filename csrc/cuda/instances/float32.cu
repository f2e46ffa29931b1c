// The kernels of float32 images.
#include "../generic_forward.cuh"
#include "../strip_forward.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<float, float>(const ForwardParams<float>&, const Workspace&, const Device&,
                                                 cudaStream_t);
template cudaError_t launch_generic<float, float, float>(const ForwardParams<float>&, const Workspace&, cudaStream_t);

}  // namespace pspl::cuda
