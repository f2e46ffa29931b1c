// The fused forward kernel for windows of 3 to 11: each warp walks one strip of columns down the rows.
//
//   global memory --(s, d) of row r--> ring in shared memory --horizontal taps--> 4 moments of row r
//                 --vertical taps--> 2 R partial sums per moment and column, in registers
//                 --row r - R is complete--> M_s, M_a, residual, sums
//
// Each row is read once, plus R rows of halo above and below the strip. The warps of a block share nothing until the final sum,
// so a row costs one __syncwarp and no block barrier. The next row's loads are in flight while this one is blurred.
#pragma once

#include "pixel.cuh"

namespace pspl::cuda {

template <typename T, int R>
struct StripTraits {
  static_assert(R >= 1);
  // 2 R partial sums for 4 moments and each column live in registers: two columns in float32, one in float64.
  static constexpr int kColumns = sizeof(T) == 4 ? 2 : 1;
  static constexpr int kWidth = kLanes * kColumns;
  static constexpr int kLoaded = kWidth + 2 * R;
  static constexpr int kLoads = (kLoaded + kLanes - 1) / kLanes;
  // Columns that reach one lane's outputs, and how many of them come with one 16-byte load.
  static constexpr int kReach = kColumns + 2 * R;
  static constexpr int kChunk = 16 / (2 * static_cast<int>(sizeof(T)));
  static_assert(kReach % kChunk == 0);
  static constexpr int kPitch = (kLoaded + kChunk - 1) / kChunk * kChunk;
  // A lane that is ahead writes row r + 1 while another still reads rows r and r - R: at least R + 2 rows.
  static constexpr int kRing = R + 2 <= 4 ? 4 : 8;
  static_assert(kRing >= R + 2 && (kRing & (kRing - 1)) == 0);
};

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T sum;  // x + y - pivot
  T difference;
};

template <typename T, int kChunk>
struct alignas(16) Chunk {
  Pair<T> pair[kChunk];
};

template <typename T, int R>
struct StripShared {
  alignas(16) Pair<T> ring[kWarps][StripTraits<T, R>::kRing * StripTraits<T, R>::kPitch];
  ReduceShared reduce;
};

// How the planes are cut: strips of StripTraits::kWidth columns and `rows` rows. Channels follow one another first, so that
// the warps of a block read the same cache lines when the image is channels_last.
struct StripPlan {
  uint32_t strips;
  uint32_t across;
  uint32_t down;
  int32_t rows;
  bool paired_stores;  // two neighbouring residuals are one aligned store
};

// kUnit: both images and the residual have column stride 1, and padding is zeros: the common case in training. Columns are then
// a constant distance apart, and what lies outside is never loaded.
template <typename T, typename E, int R, bool kUnit, bool kExtras>
__device__ void walk_strip(const Params<T>& p, const StripPlan& plan, uint32_t strip, int lane, Pair<T>* ring,
                           Sums<T, kSumsOf<kExtras>>& sums) {
  using Traits = StripTraits<T, R>;
  constexpr int kColumns = Traits::kColumns;
  const int height = static_cast<int>(p.height);
  const int width = static_cast<int>(p.width);

  const uint32_t channels = static_cast<uint32_t>(p.leading[2]);
  const uint32_t channel = strip % channels;
  strip /= channels;
  const int first_column = static_cast<int>(strip % plan.across) * Traits::kWidth;
  strip /= plan.across;
  const int first_row = static_cast<int>(strip % plan.down) * plan.rows;
  strip /= plan.down;
  const uint32_t i1 = strip % static_cast<uint32_t>(p.leading[1]);
  const uint32_t i0 = strip / static_cast<uint32_t>(p.leading[1]);
  const int end_row = min(first_row + plan.rows, height);

  const Reader<T, E> read_sr(p.sr);
  const Reader<T, E> read_hr(p.hr);
  const int64_t sr_plane = plane_offset(p.sr.stride, i0, i1, channel);
  const int64_t hr_plane = plane_offset(p.hr.stride, i0, i1, channel);
  const T inverse_width = inverse_width_of(p);

  // The pivot: mean of x + y at a few pixels. NaN and Inf stay out of it, they must not leave their own windows.
  T pivot = 0;
  {
    const int column = min(first_column + lane * kColumns, width - 1);
    T count = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + (2 * i + 1) * (end_row - first_row) / 8;
      const T sum = read_sr(sr_plane + row * p.sr.stride.row + column * p.sr.stride.column) +
                    read_hr(hr_plane + row * p.hr.stride.row + column * p.hr.stride.column);
      const bool finite = absolute(sum) <= kLargest<T> / 256;
      pivot += finite ? sum : T(0);
      count += finite ? T(1) : T(0);
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      pivot += __shfl_xor_sync(kFullWarp, pivot, offset);
      count += __shfl_xor_sync(kFullWarp, count, offset);
    }
    pivot = count > T(0) ? pivot / count : T(0);
  }

  // This lane loads the columns first_column - R + lane + 32 k of every row.
  bool wanted[Traits::kLoads];
  int64_t sr_column[Traits::kLoads];
  int64_t hr_column[Traits::kLoads];
#pragma unroll
  for (int k = 0; k < Traits::kLoads; ++k) {
    const int position = lane + kLanes * k;
    const int column = first_column - R + position;
    const int64_t inside = padded_index(column, width, kUnit ? Padding::kZeros : p.padding);
    wanted[k] = position < Traits::kLoaded && inside >= 0;
    sr_column[k] = kUnit ? column : inside * p.sr.stride.column;
    hr_column[k] = kUnit ? column : inside * p.hr.stride.column;
  }
  // Columns outside a zero-padded image are written here once, for every row of the ring, and stay.
#pragma unroll
  for (int k = 0; k < Traits::kLoads; ++k) {
    const int position = lane + kLanes * k;
    if (!wanted[k] && position < Traits::kLoaded) {
      for (int slot = 0; slot < Traits::kRing; ++slot) ring[slot * Traits::kPitch + position] = {-pivot, T(0)};
    }
  }

  T x[Traits::kLoads];
  T y[Traits::kLoads];
  // Offsets of the next row inside the image; kUnit walks, the other paddings jump.
  int64_t sr_row = sr_plane + max(first_row - R, 0) * p.sr.stride.row;
  int64_t hr_row = hr_plane + max(first_row - R, 0) * p.hr.stride.row;
  auto fetch = [&](int row) {
    const int64_t inside = padded_index(row, height, kUnit ? Padding::kZeros : p.padding);
    if (inside < 0) {
#pragma unroll
      for (int k = 0; k < Traits::kLoads; ++k) x[k] = y[k] = T(0);
      return;
    }
    if constexpr (!kUnit) {
      sr_row = sr_plane + inside * p.sr.stride.row;
      hr_row = hr_plane + inside * p.hr.stride.row;
    }
#pragma unroll
    for (int k = 0; k < Traits::kLoads; ++k) {
      if (wanted[k]) {
        x[k] = read_sr(sr_row + sr_column[k]);
        y[k] = read_hr(hr_row + hr_column[k]);
      }
    }
    if constexpr (kUnit) {
      sr_row += p.sr.stride.row;
      hr_row += p.hr.stride.row;
    }
  };

  const int column = first_column + lane * kColumns;
  const int64_t residual_column =
      plane_offset(p.residual.stride, i0, i1, channel) + column * p.residual.stride.column;
  const int64_t map_column =
      kExtras ? plane_offset(p.map.stride, i0, i1, channel) + column * p.map.stride.column : 0;

  // partial[m][c][k]: sum so far of output row r - R + 1 + k. Each new row adds to all of them, and every sum is written one
  // slot lower than it was read: the shift costs nothing.
  T partial[4][kColumns][2 * R] = {};

  fetch(first_row - R);
  for (int row = first_row - R; row < end_row + R; ++row) {
    const int turn = row - (first_row - R);
    Pair<T>* const slot = ring + (turn & (Traits::kRing - 1)) * Traits::kPitch;
#pragma unroll
    for (int k = 0; k < Traits::kLoads; ++k) {
      if (wanted[k]) slot[lane + kLanes * k] = {(x[k] + y[k]) - pivot, x[k] - y[k]};
    }
    fetch(row + 1);
    __syncwarp();

    T blurred[4][kColumns] = {};
    const auto* const reach = reinterpret_cast<const Chunk<T, Traits::kChunk>*>(slot + lane * kColumns);
#pragma unroll
    for (int j = 0; j < Traits::kReach; ++j) {
      const Pair<T> pair = reach[j / Traits::kChunk].pair[j % Traits::kChunk];
      const T value[4] = {pair.sum, pair.difference, pair.sum * pair.sum, pair.difference * pair.difference};
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int distance = j - c - R;  // from the centre of column c's window
        if (distance < -R || distance > R) continue;
        const T tap = p.taps[distance < 0 ? -distance : distance];
#pragma unroll
        for (int m = 0; m < 4; ++m) blurred[m][c] += tap * value[m];
      }
    }

    Moments<T> complete[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      T moment[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        T(&sum)[2 * R] = partial[m][c];
        const T value = blurred[m][c];
        moment[m] = sum[0] + p.taps[R] * value;
#pragma unroll
        for (int k = 0; k + 1 < 2 * R; ++k) sum[k] = sum[k + 1] + p.taps[R - 1 - k < 0 ? k + 1 - R : R - 1 - k] * value;
        sum[2 * R - 1] = p.taps[R] * value;
      }
      complete[c] = {moment[0], moment[1], moment[2], moment[3]};
    }

    const int out_row = row - R;
    if (out_row < first_row) continue;
    const Pair<T>* const centre = ring + ((turn - R) & (Traits::kRing - 1)) * Traits::kPitch + lane * kColumns + R;
    T residual[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (column + c < width) {
        const int64_t map_offset = kExtras ? map_column + out_row * p.map.stride.row + c * p.map.stride.column : 0;
        residual[c] = pixel_residual<kExtras>(p, complete[c], pivot, inverse_width, centre[c].difference, map_offset, sums);
      }
    }
    if (p.residual.data == nullptr) continue;
    T* const out = p.residual.data + residual_column + out_row * p.residual.stride.row;
    if constexpr (kColumns == 2) {
      if (plan.paired_stores) {
        if (column < width) *reinterpret_cast<Pair<T>*>(out) = {residual[0], residual[1]};
        continue;
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (column + c < width) out[c * p.residual.stride.column] = residual[c];
    }
  }
}

// Registers: 128 let four blocks of four warps share a multiprocessor; the general variant carries more addresses, float64
// twice the width.
template <typename T, bool kUnit>
constexpr int kMinBlocks = sizeof(T) == 8 ? 2 : kUnit ? 4 : 3;

template <typename T, typename E, int R, bool kUnit, bool kExtras>
__global__ void __launch_bounds__(kThreads, (kMinBlocks<T, kUnit>))
    strip_kernel(const __grid_constant__ Params<T> p, const __grid_constant__ StripPlan plan, const Workspace workspace) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<StripShared<T, R>*>(shared_memory);
  const int warp = threadIdx.x / kLanes;
  const uint32_t strip = blockIdx.x * kWarps + warp;
  Sums<T, kSumsOf<kExtras>> sums;
  if (strip < plan.strips) {
    walk_strip<T, E, R, kUnit, kExtras>(p, plan, strip, threadIdx.x % kLanes, shared.ring[warp], sums);
  }
  reduce_and_store(p, sums, workspace, shared.reduce);
}

}  // namespace pspl::cuda
