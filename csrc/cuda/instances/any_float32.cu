// The strip kernels of all other pairs without float64.
#include "../strip_forward.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<float, AnyType, AnyType>(const ForwardParams<float>&, Access, const Workspace&,
                                                            const Device&, cudaStream_t);

}  // namespace pspl::cuda
