// The kernels of float16 images.
#include "../generic_forward.cuh"
#include "../strip_forward.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<__half, __half>(const ForwardParams<float>&, const Workspace&, const Device&,
                                                   cudaStream_t);
template cudaError_t launch_generic<float, __half, __half>(const ForwardParams<float>&, const Workspace&, cudaStream_t);

}  // namespace pspl::cuda
