// The strip kernels of pairs with float64.
#include "../strip_forward.cuh"

namespace pspl::cuda {

template cudaError_t launch_strips<double, AnyType, AnyType>(const ForwardParams<double>&, Access, const Workspace&,
                                                             const Device&, cudaStream_t);

}  // namespace pspl::cuda
