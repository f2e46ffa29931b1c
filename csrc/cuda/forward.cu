// Dispatch of the forward pass: the kernels of the images' dtypes.
#include <iterator>
#include <utility>

#include "generic_forward.cuh"
#include "kernels.h"

namespace pspl::cuda {

// One pair of kFloat32Pairs; defined and instantiated in instances/.
template <DType kSr, DType kHr>
cudaError_t launch_forward(const ForwardParams<float>&, const Workspace&, const Device&, cudaStream_t);

namespace {

// The kernels' indices have 32 bits.
template <typename T>
bool is_too_large(const ForwardParams<T>& p) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  return p.height >= kLimit || p.width >= kLimit || p.planes() >= kLimit ||
         kWarps * most_blocks(p.planes(), p.height, p.width) >= kLimit;
}

template <size_t... kPair>
auto find_launcher(const ForwardParams<float>& p, std::index_sequence<kPair...>) {
  decltype(&launch_forward<DType::kFloat32, DType::kFloat32>) found = nullptr;
  const auto offer = [&](DTypePair pair, auto launcher) {
    if (pair.sr == p.sr.dtype && pair.hr == p.hr.dtype) found = launcher;
  };
  (offer(kFloat32Pairs[kPair], &launch_forward<kFloat32Pairs[kPair].sr, kFloat32Pairs[kPair].hr>), ...);
  return found;
}

}  // namespace

template <>
cudaError_t forward(const ForwardParams<float>& p, const Workspace& workspace, const Device& device,
                    cudaStream_t stream) {
  if (is_too_large(p)) return cudaErrorInvalidConfiguration;
  const auto launcher = find_launcher(p, std::make_index_sequence<std::size(kFloat32Pairs)>());
  return launcher ? launcher(p, workspace, device, stream) : cudaErrorInvalidValue;
}

// float64 is used to check derivatives, not to train: it has the generic kernel only.
template <>
cudaError_t forward(const ForwardParams<double>& p, const Workspace& workspace, const Device&, cudaStream_t stream) {
  if (is_too_large(p)) return cudaErrorInvalidConfiguration;
  if (p.sr.dtype != DType::kFloat64 || p.hr.dtype != DType::kFloat64) return cudaErrorInvalidValue;
  return launch_generic<double, double, double>(p, workspace, stream);
}

template <typename T>
int64_t workspace_size(const ForwardParams<T>& p) {
  return kNumSums * most_blocks(p.planes(), p.height, p.width);
}
template int64_t workspace_size(const ForwardParams<float>&);
template int64_t workspace_size(const ForwardParams<double>&);

}  // namespace pspl::cuda
