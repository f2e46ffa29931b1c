// Choosing and launching a strip kernel for one pair of compute type T and element type E. Each pair has a .cu file of its own,
// so that they compile side by side.
#pragma once

#include <cuda_runtime.h>

#include "launch.h"
#include "plan.h"
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
  const Layout& out = p.residual.stride;
  plan.paired_stores = p.residual.data != nullptr && out.column == 1 && p.width % 2 == 0 && out.row % 2 == 0 &&
                       out.leading[0] % 2 == 0 && out.leading[1] % 2 == 0 && out.leading[2] % 2 == 0 &&
                       reinterpret_cast<uintptr_t>(p.residual.data) % (2 * sizeof(T)) == 0;
  return plan;
}

inline unsigned strip_blocks(const StripPlan& plan) { return (plan.strips + kWarps - 1) / kWarps; }

template <typename T, typename E, int R, bool kUnit, bool kExtras>
cudaError_t launch_strip_kernel(const Params<T>& p, const StripPlan& plan, const Workspace& workspace,
                                cudaStream_t stream) {
  static_assert(sizeof(StripShared<T, R>) <= 48 * 1024, "more needs an opt-in per kernel");
  strip_kernel<T, E, R, kUnit, kExtras>
      <<<strip_blocks(plan), kThreads, sizeof(StripShared<T, R>), stream>>>(p, plan, workspace);
  return cudaGetLastError();
}

// The paper's window comes in variants that leave out what a call does not need; the others in one that can do everything.
template <typename T, typename E>
cudaError_t launch_strips(const Params<T>& p, const Scratch& scratch, int multiprocessors, cudaStream_t stream) {
  const StripPlan plan = plan_strips<T, E>(p, multiprocessors);
  const Workspace workspace{scratch.partials, scratch.ticket};
  if constexpr (!std::is_same_v<E, AnyType>) {
    const bool unit = p.padding == Padding::kZeros && p.sr.stride.column == 1 && p.hr.stride.column == 1;
    const bool extras = p.stats != nullptr || p.map.data != nullptr;
    switch (p.radius) {
      case 1:
        return launch_strip_kernel<T, E, 1, false, true>(p, plan, workspace, stream);
      case 2:
        return launch_strip_kernel<T, E, 2, false, true>(p, plan, workspace, stream);
      case 3:
        return launch_strip_kernel<T, E, 3, false, true>(p, plan, workspace, stream);
      case 4:
        return launch_strip_kernel<T, E, 4, false, true>(p, plan, workspace, stream);
      default:
        if (unit && extras) return launch_strip_kernel<T, E, 5, true, true>(p, plan, workspace, stream);
        if (unit) return launch_strip_kernel<T, E, 5, true, false>(p, plan, workspace, stream);
        if (!extras) return launch_strip_kernel<T, E, 5, false, false>(p, plan, workspace, stream);
    }
  }
  return launch_strip_kernel<T, E, 5, false, true>(p, plan, workspace, stream);
}

}  // namespace pspl::cuda
