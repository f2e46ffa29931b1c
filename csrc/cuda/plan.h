// Divides a forward launch into strips; host arithmetic only.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pspl::cuda {

// The time of a multiprocessor is modelled as its number of warps (at least kBusyWarps, because fewer do not fill the
// pipelines) times the rows of a strip with its halo.
constexpr int kBusyWarps = 8;
constexpr int kMinStripRows = 8;
constexpr int kMaxCuts = 512;  // strip heights that are tried

// Strips of `rows` rows, `across` side by side and `down` below one another in each plane. The channel varies
// fastest, so that the warps of a block read the same cache lines if the image is channels_last.
struct StripPlan {
  uint32_t strips;
  uint32_t across;
  uint32_t down;
  int32_t rows;
};

// Rows per strip for `columns` strips side by side over all planes, each `height` rows high.
inline int strip_rows(int64_t columns, int height, int radius, int warps_per_block, int multiprocessors) {
  int best_rows = height;
  int64_t best_time = INT64_MAX;
  const int cuts = std::max(1, std::min(kMaxCuts, height / kMinStripRows));
  for (int down = 1; down <= cuts; ++down) {
    const int rows = (height + down - 1) / down;
    const int64_t strips = columns * ((height + rows - 1) / rows);
    const int64_t per_wave = static_cast<int64_t>(warps_per_block) * multiprocessors;
    const int64_t warps = std::max<int64_t>((strips + per_wave - 1) / per_wave * warps_per_block, kBusyWarps);
    const int64_t time = warps * (rows + 2 * radius);
    if (time < best_time) {
      best_time = time;
      best_rows = rows;
    }
  }
  return best_rows;
}

}  // namespace pspl::cuda
