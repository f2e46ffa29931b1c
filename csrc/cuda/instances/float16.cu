#include "../strip_launch.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<float, __half, __half>(const ForwardParams<float>&, const Workspace&, int,
                                                          cudaStream_t);

}  // namespace pspl::cuda
