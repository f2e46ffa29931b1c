// Dispatch of the forward pass: the strip kernel of the call's element types, or the generic kernel.
#include "generic_forward.cuh"
#include "strip_forward.cuh"

namespace pspl::cuda {

// Instantiated in instances/.
#define PSPL_DECLARE_STRIPS(T, Sr, Hr)                                                                    \
  extern template cudaError_t launch_strips<T, Sr, Hr>(const ForwardParams<T>&, Access, const Workspace&, \
                                                       const Device&, cudaStream_t)
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

// Whether the offsets of a walk through an image fit 32 bits. It ends one row below the image, and up to three warps of
// columns to the right of it.
template <typename T>
bool has_short_offsets(const ForwardParams<T>& p, const Strides& image) {
  int64_t end = p.height * image.row + (p.width + 3 * kLanes) * image.column;
  for (int i = 0; i < kLeadingDims; ++i) end += (p.leading[i] - 1) * image.leading[i];
  return end <= INT32_MAX;
}

// The most specialised access that a call allows.
template <typename T>
Access access_of(const ForwardParams<T>& p) {
  const GradientImage& out = p.gradient;
  // The gradient's dtypes that the specialised kernels store; see StripWalker::store_gradients().
  const bool typed = out.data == nullptr || out.dtype == p.sr.dtype ||
                     (p.sr.dtype == DType::kFloat16 && out.dtype == DType::kFloat32 &&
                      (p.distance != Distance::kL1 || p.map.data != nullptr));
  if (!typed || p.padding != Padding::kZeros || !has_short_offsets(p, p.sr.strides) ||
      !has_short_offsets(p, p.hr.strides) || !has_short_offsets(p, out.strides))
    return Access::kGeneral;
  const auto even = [](int64_t value) { return value % 2 == 0; };
  const bool pairs = out.data == nullptr ||
                     (out.strides.column == 1 && even(p.width) && even(out.strides.row) &&
                      std::all_of(out.strides.leading, out.strides.leading + kLeadingDims, even) &&
                      reinterpret_cast<uintptr_t>(out.data) % static_cast<uintptr_t>(2 * size_of(out.dtype)) == 0);
  return p.sr.strides.column == 1 && p.hr.strides.column == 1 && pairs ? Access::kUnit : Access::kSpaced;
}

}  // namespace

template <typename T>
cudaError_t forward(const ForwardParams<T>& params, const Workspace& workspace, const Device& device,
                    cudaStream_t stream) {
  // The kernels' indices have 32 bits.
  constexpr int64_t kLimit = int64_t{1} << 30;
  if (params.height >= kLimit || params.width >= kLimit || params.planes() >= kLimit ||
      kWarps * most_blocks(params.planes(), params.height, params.width) >= kLimit)
    return cudaErrorInvalidConfiguration;
  return with_element_types(params, [&](auto sr, auto hr) {
    using Sr = decltype(sr);
    using Hr = decltype(hr);
    if (params.radius == 5 || (kHasAllWindows<Sr, Hr> && params.radius >= 1 && params.radius <= 4))
      return launch_strips<T, Sr, Hr>(params, access_of(params), workspace, device, stream);
    return launch_generic(params, workspace, stream);
  });
}

template cudaError_t forward<float>(const ForwardParams<float>&, const Workspace&, const Device&, cudaStream_t);
template cudaError_t forward<double>(const ForwardParams<double>&, const Workspace&, const Device&, cudaStream_t);

}  // namespace pspl::cuda
