// Which kernel a call gets: the strip kernel of its element type, or the direct one.
#include "direct_kernel.cuh"
#include "launch.h"
#include "start.cuh"
#include "strip_launch.cuh"

namespace pspl::cuda {

// Instantiated in strips_*.cu.
extern template cudaError_t launch_strips<float, float>(const Params<float>&, const Scratch&, int, cudaStream_t);
extern template cudaError_t launch_strips<float, __half>(const Params<float>&, const Scratch&, int, cudaStream_t);
extern template cudaError_t launch_strips<float, __nv_bfloat16>(const Params<float>&, const Scratch&, int,
                                                                cudaStream_t);
extern template cudaError_t launch_strips<float, AnyType>(const Params<float>&, const Scratch&, int, cudaStream_t);
extern template cudaError_t launch_strips<double, AnyType>(const Params<double>&, const Scratch&, int, cudaStream_t);

namespace {

// Calls use(E{}) with the element type that both images share, or with AnyType.
template <typename T, typename Use>
auto with_element_type(const Params<T>& p, Use use) {
  if constexpr (sizeof(T) == 4) {
    if (p.sr.dtype == p.hr.dtype) {
      if (p.sr.dtype == DType::kFloat32) return use(float{});
      if (p.sr.dtype == DType::kFloat16) return use(__half{});
      if (p.sr.dtype == DType::kBFloat16) return use(__nv_bfloat16{});
    }
  }
  return use(AnyType{});
}

template <typename T>
DirectPlan plan_direct(const Params<T>& p) {
  return {static_cast<uint32_t>((p.width + kThreads - 1) / kThreads),
          static_cast<uint32_t>((p.height + kDirectRows - 1) / kDirectRows)};
}

template <typename T>
int64_t direct_blocks(const Params<T>& p) {
  const DirectPlan plan = plan_direct(p);
  return p.planes() * plan.across * plan.down;
}

// The direct kernel's indices are 32 bits wide within a plane, and so is the grid: more than 10^12 pixels.
template <typename T>
bool has_direct_kernel(const Params<T>& p) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  return p.height < kLimit && p.width < kLimit && p.planes() < kLimit && direct_blocks(p) < kLimit;
}

}  // namespace

template <typename T>
int64_t forward_partials(const Params<T>& params, int multiprocessors) {
  return with_element_type(params, [&](auto element) -> int64_t {
    using E = decltype(element);
    const bool strips = has_strip_kernel<T, E>(params);
    return kMaxSums * (strips ? strip_blocks(plan_strips<T, E>(params, multiprocessors)) : direct_blocks(params));
  });
}

template <typename T>
cudaError_t forward(const Params<T>& params, const Scratch& scratch, int multiprocessors, cudaStream_t stream) {
  return with_element_type(params, [&](auto element) {
    using E = decltype(element);
    if (has_strip_kernel<T, E>(params)) return launch_strips<T, E>(params, scratch, multiprocessors, stream);
    if (!has_direct_kernel(params)) return cudaErrorInvalidConfiguration;
    const Workspace workspace{scratch.partials, scratch.ticket};
    const auto blocks = static_cast<unsigned>(direct_blocks(params));
    return start(&direct_kernel<T>, blocks, sizeof(DirectShared), stream, params, plan_direct(params), workspace);
  });
}

template int64_t forward_partials<float>(const Params<float>&, int);
template int64_t forward_partials<double>(const Params<double>&, int);
template cudaError_t forward<float>(const Params<float>&, const Scratch&, int, cudaStream_t);
template cudaError_t forward<double>(const Params<double>&, const Scratch&, int, cudaStream_t);

}  // namespace pspl::cuda
