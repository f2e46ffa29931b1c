// The kernels of bfloat16 sr and float32 hr.
#include "../generic_forward.cuh"
#include "../strip_forward.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<__nv_bfloat16, float>(const ForwardParams<float>&, const Workspace&, const Device&,
                                                         cudaStream_t);
template cudaError_t launch_generic<float, __nv_bfloat16, float>(const ForwardParams<float>&, const Workspace&,
                                                                 cudaStream_t);

}  // namespace pspl::cuda
