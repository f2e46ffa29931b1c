// Choosing and launching a strip kernel for one pair of compute type T and element type E. Each pair has a .cu file of
// its own, so that they compile side by side.
#pragma once

#include "launch.h"
#include "plan.h"
#include "start.cuh"
#include "strip_kernel.cuh"

namespace pspl::cuda {

// Whether the strip kernels take this call: a window with an instantiation, and sizes that their 32-bit indices hold.
template <typename T, typename E>
bool has_strip_kernel(const Params<T>& p) {
  constexpr bool kAny = std::is_same_v<E, AnyType>;
  const bool window = kAny ? p.radius == 5 : p.radius >= 1 && p.radius <= 5;
  constexpr int64_t kLimit = int64_t{1} << 30;
  return window && p.height < kLimit && p.width < kLimit && p.planes() < kLimit &&
         p.planes() * ((p.width + kLanes - 1) / kLanes) * ((p.height + kMinStripRows - 1) / kMinStripRows) < kLimit;
}

template <typename T, typename E>
StripPlan plan_strips(const Params<T>& p, int multiprocessors) {
  const int width = StripTraits<T, 1>::kWidth;  // the same for every radius
  StripPlan plan{};
  plan.across = static_cast<uint32_t>((p.width + width - 1) / width);
  plan.rows = strip_rows(p.planes() * plan.across, static_cast<int>(p.height), p.radius, kWarps, multiprocessors);
  plan.down = static_cast<uint32_t>((p.height + plan.rows - 1) / plan.rows);
  plan.strips = static_cast<uint32_t>(p.planes()) * plan.across * plan.down;
  return plan;
}

// Whether a walk through such an image stays within 32-bit offsets; it ends one row below the image, and
// up to three warps of columns beside it.
template <typename T>
bool has_short_offsets(const Params<T>& p, const Layout& image) {
  int64_t end = p.height * image.row + (p.width + 3 * kLanes) * image.column;
  for (int i = 0; i < kLeadingDims; ++i) end += (p.leading[i] - 1) * image.leading[i];
  return end <= INT32_MAX;
}

// The most special layout that a call has.
template <typename T>
Columns columns_of(const Params<T>& p) {
  const Layout& out = p.residual.stride;
  if (p.padding != Padding::kZeros || !has_short_offsets(p, p.sr.stride) || !has_short_offsets(p, p.hr.stride) ||
      !has_short_offsets(p, out))
    return Columns::kStrided;
  const auto even = [](int64_t value) { return value % 2 == 0; };
  const bool pairs =
      p.residual.data == nullptr || (out.column == 1 && even(p.width) && even(out.row) &&
                                     std::all_of(out.leading, out.leading + kLeadingDims, even) &&
                                     reinterpret_cast<uintptr_t>(p.residual.data) % (2 * sizeof(T)) == 0);
  return p.sr.stride.column == 1 && p.hr.stride.column == 1 && pairs ? Columns::kUnit : Columns::kSpaced;
}

inline unsigned strip_blocks(const StripPlan& plan) { return (plan.strips + kWarps - 1) / kWarps; }

template <typename T, typename E, int R, Columns kLayout, Work kWork>
cudaError_t launch_strip_kernel(const Params<T>& p, const StripPlan& plan, const Workspace& workspace,
                                cudaStream_t stream) {
  static_assert(sizeof(StripShared<T, R>) <= 48 * 1024, "more needs an opt-in per kernel");
  return start(&strip_kernel<T, E, R, kLayout, kWork>, strip_blocks(plan), sizeof(StripShared<T, R>), stream, p, plan,
               workspace);
}

// The paper's window comes in kernels that leave out what a call does not need, the others in one that can do
// everything.
template <typename T, typename E>
cudaError_t launch_strips(const Params<T>& p, const Scratch& scratch, int multiprocessors, cudaStream_t stream) {
  const StripPlan plan = plan_strips<T, E>(p, multiprocessors);
  const Workspace workspace{scratch.partials, scratch.ticket};
  constexpr Columns kStrided = Columns::kStrided;
  constexpr Work kEverything = Work::kEverything;
  if constexpr (!std::is_same_v<E, AnyType>) {
    if (p.radius == 1) return launch_strip_kernel<T, E, 1, kStrided, kEverything>(p, plan, workspace, stream);
    if (p.radius == 2) return launch_strip_kernel<T, E, 2, kStrided, kEverything>(p, plan, workspace, stream);
    if (p.radius == 3) return launch_strip_kernel<T, E, 3, kStrided, kEverything>(p, plan, workspace, stream);
    if (p.radius == 4) return launch_strip_kernel<T, E, 4, kStrided, kEverything>(p, plan, workspace, stream);
    const bool map = p.map.data != nullptr;
    const bool stats = p.stats != nullptr;
    const bool l1 = p.distance == Distance::kL1;
    const Columns columns = columns_of(p);
    if (columns == Columns::kUnit) {
      if (map || (stats && !l1)) {
        return launch_strip_kernel<T, E, 5, Columns::kUnit, kEverything>(p, plan, workspace, stream);
      }
      if (stats) return launch_strip_kernel<T, E, 5, Columns::kUnit, Work::kL1WithStats>(p, plan, workspace, stream);
      if (l1) return launch_strip_kernel<T, E, 5, Columns::kUnit, Work::kL1>(p, plan, workspace, stream);
      return launch_strip_kernel<T, E, 5, Columns::kUnit, Work::kDistance>(p, plan, workspace, stream);
    }
    if (columns == Columns::kSpaced && !map && !stats) {
      if (l1) return launch_strip_kernel<T, E, 5, Columns::kSpaced, Work::kL1>(p, plan, workspace, stream);
      return launch_strip_kernel<T, E, 5, Columns::kSpaced, Work::kDistance>(p, plan, workspace, stream);
    }
    if (!map && !stats) return launch_strip_kernel<T, E, 5, kStrided, Work::kDistance>(p, plan, workspace, stream);
  }
  return launch_strip_kernel<T, E, 5, kStrided, kEverything>(p, plan, workspace, stream);
}

}  // namespace pspl::cuda
