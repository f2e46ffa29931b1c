#include "../strip_launch.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<double, AnyType, AnyType>(const ForwardParams<double>&, const Workspace&, int,
                                                             cudaStream_t);

}  // namespace pspl::cuda
