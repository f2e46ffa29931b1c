#include "strip_launch.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<float, AnyType>(const Params<float>&, const Scratch&, int, cudaStream_t);

}  // namespace pspl::cuda
