#include "../strip_launch.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<float, float, float>(const ForwardParams<float>&, const Workspace&, int,
                                                        cudaStream_t);

}  // namespace pspl::cuda
