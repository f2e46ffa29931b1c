// Dispatch of the forward pass: the strip kernel of the images' element types, or the generic kernel.
#include "generic_forward.cuh"
#include "strip_forward.cuh"

namespace pspl::cuda {

// Instantiated in instances/.
#define PSPL_DECLARE_KERNELS(Sr, Hr)                                                                              \
  extern template cudaError_t launch_strips<Sr, Hr>(const ForwardParams<float>&, const Workspace&, const Device&, \
                                                    cudaStream_t);                                                \
  extern template cudaError_t launch_generic<float, Sr, Hr>(const ForwardParams<float>&, const Workspace&, cudaStream_t)
PSPL_DECLARE_KERNELS(float, float);
PSPL_DECLARE_KERNELS(__half, __half);
PSPL_DECLARE_KERNELS(__nv_bfloat16, __nv_bfloat16);
PSPL_DECLARE_KERNELS(__half, float);
PSPL_DECLARE_KERNELS(__nv_bfloat16, float);
#undef PSPL_DECLARE_KERNELS

namespace {

// The kernels' indices have 32 bits.
template <typename T>
bool is_too_large(const ForwardParams<T>& p) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  return p.height >= kLimit || p.width >= kLimit || p.planes() >= kLimit ||
         kWarps * most_blocks(p.planes(), p.height, p.width) >= kLimit;
}

template <typename Sr, typename Hr>
cudaError_t launch_forward(const ForwardParams<float>& p, const Workspace& workspace, const Device& device,
                           cudaStream_t stream) {
  return p.radius >= 1 && p.radius <= 5 ? launch_strips<Sr, Hr>(p, workspace, device, stream)
                                        : launch_generic<float, Sr, Hr>(p, workspace, stream);
}

}  // namespace

template <>
cudaError_t forward(const ForwardParams<float>& p, const Workspace& workspace, const Device& device,
                    cudaStream_t stream) {
  if (is_too_large(p)) return cudaErrorInvalidConfiguration;
  const auto is = [&](DType sr, DType hr) { return p.sr.dtype == sr && p.hr.dtype == hr; };
  const auto launch = is(DType::kFloat32, DType::kFloat32)     ? launch_forward<float, float>
                      : is(DType::kFloat16, DType::kFloat16)   ? launch_forward<__half, __half>
                      : is(DType::kBFloat16, DType::kBFloat16) ? launch_forward<__nv_bfloat16, __nv_bfloat16>
                      : is(DType::kFloat16, DType::kFloat32)   ? launch_forward<__half, float>
                      : is(DType::kBFloat16, DType::kFloat32)  ? launch_forward<__nv_bfloat16, float>
                                                               : nullptr;
  return launch ? launch(p, workspace, device, stream) : cudaErrorInvalidValue;
}

// float64 is used to check derivatives, not to train: it has the generic kernel only.
template <>
cudaError_t forward(const ForwardParams<double>& p, const Workspace& workspace, const Device&, cudaStream_t stream) {
  if (is_too_large(p)) return cudaErrorInvalidConfiguration;
  if (p.sr.dtype != DType::kFloat64 || p.hr.dtype != DType::kFloat64) return cudaErrorInvalidValue;
  return launch_generic<double, double, double>(p, workspace, stream);
}

}  // namespace pspl::cuda
