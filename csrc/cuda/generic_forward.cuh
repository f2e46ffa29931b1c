// The fused forward kernel for all other windows: one thread per pixel sums its K x K window. It needs K^2 taps instead
// of 2 K, but supports any K without an instantiation.
#pragma once

#include "launch.cuh"
#include "pixel.cuh"
#include "reduction.cuh"
#include "strip_plan.h"

namespace pspl::cuda {

struct GenericShared {
  ReduceShared reduce;
};

// A block computes kThreads columns of kGenericRows rows; most_blocks() counts them.
constexpr int kGenericRows = kMinStripRows;

struct GenericPlan {
  uint32_t across;
  uint32_t down;
};

template <typename T, typename Sr, typename Hr>
__global__ void __launch_bounds__(kThreads, 1)
    generic_forward(const __grid_constant__ ForwardParams<T> p, const GenericPlan plan, const Workspace workspace) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<GenericShared*>(shared_memory);
  ThreadSums<T, kNumSums> sums;

  uint32_t block = blockIdx.x;
  const int height = static_cast<int>(p.height);
  const int width = static_cast<int>(p.width);
  const int column = static_cast<int>(block % plan.across) * kThreads + threadIdx.x;
  block /= plan.across;
  const int first_row = static_cast<int>(block % plan.down) * kGenericRows;
  block /= plan.down;
  const uint32_t i2 = block % static_cast<uint32_t>(p.leading[2]);
  block /= static_cast<uint32_t>(p.leading[2]);
  const uint32_t i1 = block % static_cast<uint32_t>(p.leading[1]);
  const uint32_t i0 = block / static_cast<uint32_t>(p.leading[1]);
  const int end_row = column < width ? min(first_row + kGenericRows, height) : first_row;
  const T inverse_delta = inverse_delta_of<DeviceMath>(p);
  const int64_t sr_plane = p.sr.strides.plane_offset(i0, i1, i2);
  const int64_t hr_plane = p.hr.strides.plane_offset(i0, i1, i2);
  const auto sr_at = [&](int r, int c) {
    return read<T, Sr>(p.sr.data, sr_plane + r * p.sr.strides.row + c * p.sr.strides.column);
  };
  const auto hr_at = [&](int r, int c) {
    return read<T, Hr>(p.hr.data, hr_plane + r * p.hr.strides.row + c * p.hr.strides.column);
  };

  const auto weight_inside = [&](int centre, int size) {
    T weight = 0;
    for (int i = -p.radius; i <= p.radius; ++i) {
      if (padded_index(centre + i, size, p.padding) >= 0) weight += p.taps[i < 0 ? -i : i];
    }
    return weight;
  };
  struct Sums {
    T mean_s, mean_d, square_s, square_d;
  };
  for (int row = first_row; row < end_row; ++row) {
    // The pivots of a window are s and d at its centre, times the weight of its part inside the image: the means of a
    // flat image. If one is NaN or Inf, so is the window.
    const T inside_window = weight_inside(row, height) * weight_inside(column, width);
    const T difference = sr_at(row, column) - hr_at(row, column);
    const T pivot_s = (sr_at(row, column) + hr_at(row, column)) * inside_window;
    const T pivot_d = difference * inside_window;
    Sums window{T(0), T(0), p.twice_c2, T(0)};
    for (int i = -p.radius; i <= p.radius; ++i) {
      const int r = padded_index(row + i, height, p.padding);
      Sums line{};
      for (int j = -p.radius; j <= p.radius; ++j) {
        const int c = padded_index(column + j, width, p.padding);
        const bool inside = r >= 0 && c >= 0;
        const T x = inside ? sr_at(r, c) : T(0);
        const T y = inside ? hr_at(r, c) : T(0);
        const T s = (x + y) - pivot_s;
        const T d = (x - y) - pivot_d;
        const T tap = p.taps[j < 0 ? -j : j];
        line.mean_s += tap * s;
        line.mean_d += tap * d;
        line.square_s += tap * (s * s);
        line.square_d += tap * (d * d);
      }
      const T tap = p.taps[i < 0 ? -i : i];
      window.mean_s += tap * line.mean_s;
      window.mean_d += tap * line.mean_d;
      window.square_s += tap * line.square_s;
      window.square_d += tap * line.square_d;
    }
    const Moments<T> moments{window.mean_s + pivot_s, window.mean_d + pivot_d,
                             window.square_s - window.mean_s * window.mean_s,
                             window.square_d - window.mean_d * window.mean_d};

    const Strides& map = p.map.strides;
    const int64_t map_offset = map.plane_offset(i0, i1, i2) + row * map.row + column * map.column;
    const T gradient = emit_pixel<Work::kAll>(p, moments, inverse_delta, difference, true, T(1), map_offset, sums);
    if (p.gradient.data == nullptr) continue;
    const Strides& out = p.gradient.strides;
    const int64_t offset = out.plane_offset(i0, i1, i2) + row * out.row + column * out.column;
    if (p.gradient.dtype == p.sr.dtype) {
      static_cast<Sr*>(p.gradient.data)[offset] = round_to<Sr>(gradient);
    } else {
      static_cast<T*>(p.gradient.data)[offset] = gradient;
    }
  }
  reduce_and_store(p, sums, workspace, shared.reduce);
}

template <typename T, typename Sr, typename Hr>
cudaError_t launch_generic(const ForwardParams<T>& p, const Workspace& workspace, cudaStream_t stream) {
  const GenericPlan plan{static_cast<uint32_t>(ceil_div(p.width, kThreads)),
                         static_cast<uint32_t>(ceil_div(p.height, kGenericRows))};
  const int64_t blocks = most_blocks(p.planes(), p.height, p.width);
  return launch(&generic_forward<T, Sr, Hr>, blocks, sizeof(GenericShared), stream, p, plan, workspace);
}

}  // namespace pspl::cuda
