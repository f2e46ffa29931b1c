// What a launch divides the images into: strips of columns, one per warp. Host arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../pspl_math.h"
#include "block.h"
#include "kernels.h"

namespace pspl::cuda {

// Columns of a lane, of which 2 R partial sums of 4 moments each stay in registers, and of a warp.
constexpr int kColumns = 2;
constexpr int kStripColumns = kLanes * kColumns;

// Windows of radius 1 to this have a strip kernel.
constexpr int kMaxStripRadius = 5;

constexpr int kMinStripRows = 8;
constexpr int kMaxCuts = 512;  // strip heights that are tried

// Fewer warps than this take as long per row: they do not fill the pipelines of a multiprocessor (simulated).
constexpr int kBusyWarps = 9;

// Blocks of a kernel that a multiprocessor holds. Its registers suffice for `by_registers` blocks, the second argument
// of __launch_bounds__. The driver reserves up to 1 KiB of shared memory per block.
inline int resident_blocks(int by_registers, int64_t shared_bytes, const Device& device) {
  return static_cast<int>(std::clamp<int64_t>(device.shared_bytes / (shared_bytes + 1024), 1, by_registers));
}

// Strips of `rows` rows, `across` side by side and `down` below one another in each plane. The channel varies
// fastest, so that the warps of a block read the same cache lines if the image is channels_last.
struct StripPlan {
  uint32_t strips;
  uint32_t across;
  uint32_t down;
  int32_t rows;
};

inline int64_t strip_blocks(const StripPlan& plan) { return ceil_div(plan.strips, kWarps); }

// Selects the height of the strips: short strips use more multiprocessors, but each computes 2 R rows of halo. The time
// of a row is modelled as the number of warps on a multiprocessor. Blocks of a first, incomplete wave are spread
// evenly. A later, incomplete wave takes as long as a complete one, because the multiprocessors that finish first fill
// up again.
inline StripPlan plan_strips(int64_t planes, int height, int width, int radius, int resident, const Device& device) {
  const int64_t across = ceil_div(width, kStripColumns);
  StripPlan best{};
  int64_t best_time = INT64_MAX;
  const int cuts = std::max(1, std::min(kMaxCuts, height / kMinStripRows));
  for (int down = 1; down <= cuts; ++down) {
    const int64_t rows = ceil_div(height, down);
    const int64_t strips = planes * across * ceil_div(height, rows);
    const int64_t blocks = ceil_div(strips, kWarps);
    const int64_t waves = ceil_div(blocks, static_cast<int64_t>(resident) * device.multiprocessors);
    const int64_t resident_now = waves > 1 ? resident : ceil_div(blocks, device.multiprocessors);
    const int64_t time = waves * std::max<int64_t>(resident_now * kWarps, kBusyWarps) * (rows + 2 * radius);
    if (time < best_time) {
      best_time = time;
      best = {static_cast<uint32_t>(strips), static_cast<uint32_t>(across),
              static_cast<uint32_t>(ceil_div(height, rows)), static_cast<int32_t>(rows)};
    }
  }
  return best;
}

// No forward launch has more blocks: one per kThreads columns of kMinStripRows rows.
constexpr int64_t most_blocks(int64_t planes, int64_t height, int64_t width) {
  return planes * ceil_div(height, kMinStripRows) * ceil_div(width, kThreads);
}

}  // namespace pspl::cuda
