// How the CUDA kernels are launched: their interface, and what a launch divides the images into. Plain structs, a
// stream and host arithmetic. A launcher returns the status of its launch; it does not allocate or synchronise.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "../pspl_params.h"

namespace pspl::cuda {

// ---------------------------------------------------------------- interface

struct Device {
  int architecture;  // 10 * major + minor, as in sm_90
  int multiprocessors;
  int64_t shared_bytes;  // of one multiprocessor
};

// Memory that a forward launch needs besides its outputs.
struct Workspace {
  double* partials;  // [workspace_size()], uninitialised
  unsigned* ticket;  // one counter, 0 before and after a launch; launches that share it must be on one stream
};

// Whether forward() reads images of these dtypes: both of one dtype, or sr of 16 bits and hr float32, as under
// autocast.
constexpr bool has_kernels(DType sr, DType hr) {
  return sr == hr || ((sr == DType::kFloat16 || sr == DType::kBFloat16) && hr == DType::kFloat32);
}

// The number of partial sums that forward() may write.
template <typename T>
int64_t workspace_size(const ForwardParams<T>& params);

template <typename T>
cudaError_t forward(const ForwardParams<T>& params, const Workspace& workspace, const Device& device,
                    cudaStream_t stream);

cudaError_t backward(const BackwardParams& params, const Device& device, cudaStream_t stream);

// ---------------------------------------------------------------- geometry of a forward launch

constexpr int kLanes = 32;
constexpr int kWarps = 4;
constexpr int kThreads = kLanes * kWarps;

constexpr int kMinStripRows = 8;
constexpr int kMaxCuts = 512;  // strip heights that are tried

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether the strip kernel keeps only s and d in shared memory, and squares them each time it loads them. In
// simulations this takes 5 to 14 % less time where shared memory and issue slots are the limit, and up to 6 % more
// where the FP32 pipe is.
constexpr bool squares_after_load(int architecture) { return architecture >= 90 && architecture < 120; }

// Fewer warps than this take as long per row: they do not fill the pipelines of a multiprocessor (simulated).
constexpr int busy_warps(int architecture) { return squares_after_load(architecture) ? 9 : 8; }

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
inline StripPlan plan_strips(int64_t planes, int height, int width, int strip_width, int radius, int resident,
                             const Device& device) {
  const int64_t across = ceil_div(width, strip_width);
  StripPlan best{};
  int64_t best_time = INT64_MAX;
  const int cuts = std::max(1, std::min(kMaxCuts, height / kMinStripRows));
  for (int down = 1; down <= cuts; ++down) {
    const int64_t rows = ceil_div(height, down);
    const int64_t strips = planes * across * ceil_div(height, rows);
    const int64_t blocks = ceil_div(strips, kWarps);
    const int64_t waves = ceil_div(blocks, static_cast<int64_t>(resident) * device.multiprocessors);
    const int64_t resident_now = waves > 1 ? resident : ceil_div(blocks, device.multiprocessors);
    const int64_t time =
        waves * std::max<int64_t>(resident_now * kWarps, busy_warps(device.architecture)) * (rows + 2 * radius);
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

template <typename T>
int64_t workspace_size(const ForwardParams<T>& params) {
  return kNumSums * most_blocks(params.planes(), params.height, params.width);
}

}  // namespace pspl::cuda
