// Chooses and launches a strip kernel for one compute type and pair of element types. Each instantiation has its
// own file in instances/, so that they compile in parallel.
#pragma once

#include "launch.cuh"
#include "launch.h"
#include "strip_forward.cuh"

namespace pspl::cuda {

// The strip kernels' and the generic kernel's indices have 32 bits.
constexpr int64_t kIndexLimit = int64_t{1} << 30;

template <typename T>
bool has_short_indices(const ForwardParams<T>& p, int64_t blocks) {
  return p.height < kIndexLimit && p.width < kIndexLimit && p.planes() < kIndexLimit && blocks < kIndexLimit;
}

// float32 and 16-bit images of one dtype have kernels for windows of 3 to 11, mixed dtypes and float64 for 11 only.
template <typename Sr, typename Hr>
constexpr bool kHasAllWindows = std::is_same_v<Sr, Hr> && !std::is_same_v<Sr, AnyType>;

// Whether a strip kernel can run this call: its window is instantiated, and its indices fit 32 bits.
template <typename T, typename Sr, typename Hr>
bool has_strip_kernel(const ForwardParams<T>& p) {
  const bool window = kHasAllWindows<Sr, Hr> ? p.radius >= 1 && p.radius <= 5 : p.radius == 5;
  const int64_t most_strips =
      p.planes() * ((p.width + kLanes - 1) / kLanes) * ((p.height + kMinStripRows - 1) / kMinStripRows);
  return window && has_short_indices(p, most_strips);
}

template <typename T>
StripPlan plan_strips(const ForwardParams<T>& p, int multiprocessors) {
  const int width = StripTraits<T, T, T, 1, Access::kGeneral, Work::kAll>::kWidth;  // depends on T only
  StripPlan plan{};
  plan.across = static_cast<uint32_t>((p.width + width - 1) / width);
  plan.rows = strip_rows(p.planes() * plan.across, static_cast<int>(p.height), p.radius, kWarps, multiprocessors);
  plan.down = static_cast<uint32_t>((p.height + plan.rows - 1) / plan.rows);
  plan.strips = static_cast<uint32_t>(p.planes()) * plan.across * plan.down;
  return plan;
}

inline int64_t strip_blocks(const StripPlan& plan) { return (plan.strips + kWarps - 1) / kWarps; }

// Whether the offsets of a walk through an image fit 32 bits. It ends one row below the image, and up to three warps of
// columns to the right of it.
template <typename T>
bool has_short_offsets(const ForwardParams<T>& p, const Strides& image) {
  int64_t end = p.height * image.row + (p.width + 3 * kLanes) * image.column;
  for (int i = 0; i < kLeadingDims; ++i) end += (p.leading[i] - 1) * image.leading[i];
  return end <= INT32_MAX;
}

// The most specialised access that a call allows.
template <typename Sr, typename T>
Access access_of(const ForwardParams<T>& p) {
  const GradientImage& out = p.gradient;
  const bool typed =
      out.data == nullptr || out.dtype == kDTypeOf<Sr> ||
      (std::is_same_v<Sr, __half> && out.dtype == DType::kFloat32 && (p.distance != Distance::kL1 || p.map.data));
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

// The 11 x 11 window has kernels that omit what a call does not need; each other window has one general kernel.
template <typename T, typename Sr, typename Hr>
cudaError_t launch_strips(const ForwardParams<T>& p, const Workspace& workspace, int multiprocessors,
                          cudaStream_t stream) {
  const StripPlan plan = plan_strips(p, multiprocessors);
  const auto run = [&](auto traits) {
    using Traits = decltype(traits);
    static_assert(sizeof(StripShared<Traits>) <= 48 * 1024, "more needs an opt-in per kernel");
    return launch(&strip_forward<Traits>, strip_blocks(plan), sizeof(StripShared<Traits>), stream, p, plan, workspace);
  };
  const bool map = p.map.data != nullptr;
  const bool stats = p.stats != nullptr;
  const bool l1 = p.distance == Distance::kL1;
  if constexpr (kHasAllWindows<Sr, Hr>) {
    if (p.radius == 1) return run(StripTraits<T, Sr, Hr, 1, Access::kGeneral, Work::kAll>{});
    if (p.radius == 2) return run(StripTraits<T, Sr, Hr, 2, Access::kGeneral, Work::kAll>{});
    if (p.radius == 3) return run(StripTraits<T, Sr, Hr, 3, Access::kGeneral, Work::kAll>{});
    if (p.radius == 4) return run(StripTraits<T, Sr, Hr, 4, Access::kGeneral, Work::kAll>{});
  }
  if constexpr (!std::is_same_v<Sr, AnyType>) {
    const Access access = access_of<Sr>(p);
    if (access == Access::kUnit && !map && (l1 || !stats)) {
      if (stats) return run(StripTraits<T, Sr, Hr, 5, Access::kUnit, Work::kL1Stats>{});
      if (l1) return run(StripTraits<T, Sr, Hr, 5, Access::kUnit, Work::kL1>{});
      return run(StripTraits<T, Sr, Hr, 5, Access::kUnit, Work::kDistance>{});
    }
    if (access == Access::kUnit && kHasAllWindows<Sr, Hr>)
      return run(StripTraits<T, Sr, Hr, 5, Access::kUnit, Work::kAll>{});
    if (access != Access::kGeneral && !map && !stats) {
      if (l1) return run(StripTraits<T, Sr, Hr, 5, Access::kSpaced, Work::kL1>{});
      return run(StripTraits<T, Sr, Hr, 5, Access::kSpaced, Work::kDistance>{});
    }
    if (kHasAllWindows<Sr, Hr> && !map && !stats) {
      return run(StripTraits<T, Sr, Hr, 5, Access::kGeneral, Work::kDistance>{});
    }
  }
  return run(StripTraits<T, Sr, Hr, 5, Access::kGeneral, Work::kAll>{});
}

}  // namespace pspl::cuda
