#include "../strip_launch.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<float, __nv_bfloat16, __nv_bfloat16>(const ForwardParams<float>&, const Workspace&,
                                                                        int, cudaStream_t);

}  // namespace pspl::cuda
