// Dispatch of the forward pass: the strip kernel of the call's element type, or the generic kernel.
#include "generic_forward.cuh"
#include "strip_launch.cuh"

namespace pspl::cuda {

// Instantiated in instances/.
#define PSPL_DECLARE_STRIPS(T, Sr, Hr) \
  extern template cudaError_t launch_strips<T, Sr, Hr>(const ForwardParams<T>&, const Workspace&, int, cudaStream_t)
PSPL_DECLARE_STRIPS(float, float, float);
PSPL_DECLARE_STRIPS(float, __half, __half);
PSPL_DECLARE_STRIPS(float, __nv_bfloat16, __nv_bfloat16);
PSPL_DECLARE_STRIPS(float, __half, float);
PSPL_DECLARE_STRIPS(float, __nv_bfloat16, float);
PSPL_DECLARE_STRIPS(float, AnyType, AnyType);
PSPL_DECLARE_STRIPS(double, AnyType, AnyType);
#undef PSPL_DECLARE_STRIPS

namespace {

// Calls use(Sr{}, Hr{}) with the images' element types if that pair has kernels, else with AnyType.
template <typename T, typename Use>
auto with_element_types(const ForwardParams<T>& p, Use use) {
  if constexpr (sizeof(T) == 4) {
    const DType sr = p.sr.dtype, hr = p.hr.dtype;
    if (sr == DType::kFloat32 && hr == DType::kFloat32) return use(float{}, float{});
    if (sr == DType::kFloat16 && hr == DType::kFloat16) return use(__half{}, __half{});
    if (sr == DType::kBFloat16 && hr == DType::kBFloat16) return use(__nv_bfloat16{}, __nv_bfloat16{});
    if (sr == DType::kFloat16 && hr == DType::kFloat32) return use(__half{}, float{});
    if (sr == DType::kBFloat16 && hr == DType::kFloat32) return use(__nv_bfloat16{}, float{});
  }
  return use(AnyType{}, AnyType{});
}

template <typename T>
GenericPlan plan_generic(const ForwardParams<T>& p) {
  return {static_cast<uint32_t>((p.width + kThreads - 1) / kThreads),
          static_cast<uint32_t>((p.height + kGenericRows - 1) / kGenericRows)};
}

template <typename T>
int64_t generic_blocks(const ForwardParams<T>& p) {
  const GenericPlan plan = plan_generic(p);
  return p.planes() * plan.across * plan.down;
}

}  // namespace

template <typename T>
int64_t workspace_size(const ForwardParams<T>& params, int multiprocessors) {
  return with_element_types(params, [&](auto sr, auto hr) -> int64_t {
    const bool strips = has_strip_kernel<T, decltype(sr), decltype(hr)>(params);
    return kNumSums * (strips ? strip_blocks(plan_strips(params, multiprocessors)) : generic_blocks(params));
  });
}

template <typename T>
cudaError_t forward(const ForwardParams<T>& params, const Workspace& workspace, int multiprocessors,
                    cudaStream_t stream) {
  return with_element_types(params, [&](auto sr, auto hr) {
    using Sr = decltype(sr);
    using Hr = decltype(hr);
    if (has_strip_kernel<T, Sr, Hr>(params)) {
      return launch_strips<T, Sr, Hr>(params, workspace, multiprocessors, stream);
    }
    const int64_t blocks = generic_blocks(params);
    if (!has_short_indices(params, blocks)) return cudaErrorInvalidConfiguration;
    return launch(&generic_forward<T>, blocks, sizeof(GenericShared), stream, params, plan_generic(params), workspace);
  });
}

template int64_t workspace_size<float>(const ForwardParams<float>&, int);
template int64_t workspace_size<double>(const ForwardParams<double>&, int);
template cudaError_t forward<float>(const ForwardParams<float>&, const Workspace&, int, cudaStream_t);
template cudaError_t forward<double>(const ForwardParams<double>&, const Workspace&, int, cudaStream_t);

}  // namespace pspl::cuda
