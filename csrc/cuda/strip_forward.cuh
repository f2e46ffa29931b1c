// The fused forward kernel for windows of 3 to 11: each warp walks one strip of columns down the rows.
//
//   global memory --s = x + y and d = x - y of row r--> shared memory
//                 --less the lane's pivots, squared, horizontal taps--> 4 moments of row r
//                 --vertical taps--> 2 R partial sums per moment and column, in registers
//                 --row r - R is complete--> M_s, M_a, gradient, sums
//
// Each row is read once, plus R rows of halo above and below the strip. The warps of a block share nothing until the
// final sum, so a row costs one __syncwarp and no block barrier. The loads of the next row are in flight while the
// current one is blurred.
#pragma once

#include <algorithm>

#include "launch.cuh"
#include "pixel.cuh"
#include "reduction.cuh"
#include "strip_plan.h"

namespace pspl::cuda {

// What a kernel may assume about the memory of its images. The common cases in training have specialised kernels.
enum class Access {
  kUnit,     // kSpaced, with column stride 1 in both images and two gradients that fit one aligned store
  kSpaced,   // padding zeros, and offsets that fit 32 bits: the rest of channels_last, crops and views
  kGeneral,  // everything
};

// The elements of the gradient that a specialised kernel writes. Those of other paddings and views write float32 as
// well.
template <typename Sr>
using SavedElement = std::conditional_t<std::is_same_v<Sr, __half>, float, Sr>;

// A kernel is compiled for the element types of sr and hr, a window radius R, and the two switches above. It computes
// in float32.
template <typename Sr_, typename Hr_, int kRadius_, Access kAccess_, Work kWork_>
struct StripTraits {
  using Sr = Sr_;
  using Hr = Hr_;
  // Of the saved gradient. Where hr of another dtype needs one too, it is float32, which kGeneral can store as well.
  using Gradient = SavedElement<Sr>;
  static constexpr int kRadius = kRadius_;
  static constexpr Access kAccess = kAccess_;
  static constexpr Work kWork = kWork_;
  static_assert(kRadius >= 1);

  // Columns of a row with its halo, and the loads per lane that fetch them.
  static constexpr int kLoaded = kStripColumns + 2 * kRadius;
  static constexpr int kLoads = (kLoaded + kLanes - 1) / kLanes;
  // Columns that reach one lane's outputs.
  static constexpr int kReach = kColumns + 2 * kRadius;
  static_assert(kReach % 2 == 0 && kLoaded % 2 == 0);  // a 16-byte load brings two
  // Rows in the ring of centre differences, which wait R rows for their windows to be complete.
  static constexpr int kRing = kRadius + 1 <= 4 ? 4 : 8;
  static_assert(kRing > kRadius && (kRing & (kRing - 1)) == 0);

  static constexpr bool kZeros = kAccess != Access::kGeneral;
  static constexpr bool kUnit = kAccess == Access::kUnit;
  // An offset in an image, in elements. 32 bits save a register and an instruction for each of three images.
  using Offset = std::conditional_t<kZeros, int32_t, int64_t>;
};

// ---------------------------------------------------------------- shared memory

struct alignas(16) TwoPairs {
  Pair pair[2];
};

// The differences at a lane's own columns, the centres of its windows.
struct alignas(8) CentreDifference {
  float value[kColumns];
};

// One row of a strip with its halo.
template <typename Traits>
struct alignas(16) StripRow {
  Pair pairs[Traits::kLoaded];
};

// Two rows per warp, because a lane that is ahead writes the next row while another still reads this one.
template <typename Traits>
struct StripRows {
  StripRow<Traits> row[2];
};

// [row][lane]; each lane touches only its own entries.
template <typename Traits>
using CentreRing = CentreDifference[Traits::kRing][kLanes];

template <typename Traits>
struct StripShared {
  // The first member, because offsets in a ring wrap around by masking: a ring must lie at a multiple of its size.
  CentreRing<Traits> centres[kWarps];
  static_assert((sizeof(CentreRing<Traits>) & (sizeof(CentreRing<Traits>) - 1)) == 0);
  StripRows<Traits> rows[kWarps];
  ReduceShared reduce;
};

// ---------------------------------------------------------------- one warp, one strip

// A window is far from the pivots if s^2 / kFarS + d^2 / kFarD, of the distance, is above the variance along the row
// and 2 C2. Below it, rounding is a few times 2^-24 of the square, and Eq. 5 divides it by such a variance: at most
// 2e-5. d counts more, because Eq. 5 subtracts its variance above and adds it below the line.
constexpr float kFarS = 32.0f;
constexpr float kFarD = 24.0f;

// Moving the pivots leaves too large an error in a window that begins with that row if its outermost tap is above this.
constexpr float kHeavyTap = 0.01f;

// Whether the row below the one that is blurred has to be loaded.
enum class NextRow {
  kInImage,
  kUnknown,  // it may be padding
  kUnused,   // no output needs it
};

template <typename Traits>
class StripWalker {
  using Sr = typename Traits::Sr;
  using Hr = typename Traits::Hr;
  using Offset = typename Traits::Offset;
  static constexpr int R = Traits::kRadius;
  static constexpr int kLoads = Traits::kLoads;

 public:
  using StripSums = ThreadSums<float, kSumCount<Traits::kWork>>;

  __device__ __forceinline__ StripWalker(const ForwardParams<float>& params, const StripPlan& strip_plan,
                                         uint32_t strip, int lane_index, StripRows<Traits>& rows,
                                         CentreRing<Traits>& centres, unsigned char* shared, StripSums& strip_sums)
      : p(params), plan(strip_plan), shared_memory(shared), sums(strip_sums), lane(lane_index) {
    locate_strip(strip);
    locate_lane(rows, centres);
  }

  // Three loops, because a branch in the middle one, which takes most of the time, would cost registers. The first 2 R
  // rows complete no output row, and the last rows have no row below them to load.
  __device__ __forceinline__ void walk() {
    Moments<float> complete[kColumns];
    int row = first_row - R;
    load_or_clear(row, NextRow::kUnknown);
    for (int left = 2 * R; left > 0;) {
      bool far;
      do {
        blur_row(row, NextRow::kUnknown, complete);
        far = row++ >= 0 && is_far();
      } while (--left > 0 && !far);
      if (far) move_pivots();
    }
    // The output rows whose windows have no further row below. With zero padding they include those that end in it.
    // Computed here, again, because no register can hold it while the loop above runs.
    const int rows = min(plan.rows, height - (row - R));
    const int outside = Traits::kZeros ? max(row + rows - height, 0) : 0;
    const int last_rows = __shfl_sync(kFullWarp, min(outside + 1, rows), 0);
    for (int left = rows - last_rows; left > 0;) {
      bool far;
      do {
        blur_row(row++, Traits::kZeros ? NextRow::kInImage : NextRow::kUnknown, complete);
        emit_row(complete);
        far = is_far();
      } while (--left > 0 && !far);
      if (far) move_pivots();
    }
#pragma unroll 1
    for (int left = last_rows; left > 0; --left) {
      blur_row(row, NextRow::kUnused, complete);
      emit_row(complete);
    }
  }

 private:
  // -------- setup: the strip's place in the images

  __device__ __forceinline__ void locate_strip(uint32_t strip) {
    height = static_cast<int>(p.height);
    const int width = static_cast<int>(p.width);
    const uint32_t channels = static_cast<uint32_t>(p.leading[2]);
    const uint32_t channel = strip % channels;
    strip /= channels;
    first_column = static_cast<int>(strip % plan.across) * kStripColumns;
    strip /= plan.across;
    first_row = static_cast<int>(strip % plan.down) * plan.rows;
    strip /= plan.down;
    const uint32_t i1 = strip % static_cast<uint32_t>(p.leading[1]);
    const uint32_t i0 = strip / static_cast<uint32_t>(p.leading[1]);

    sr_plane = p.sr.strides.plane_offset(i0, i1, channel);
    hr_plane = p.hr.strides.plane_offset(i0, i1, channel);
    gradient_plane = p.gradient.strides.plane_offset(i0, i1, channel);
    map_plane = p.map.strides.plane_offset(i0, i1, channel);
    inverse_delta = inverse_delta_of<DeviceMath>(p);
    pivot = first_pivot(min(first_column + lane * kColumns, width - 1));
  }

  // s and d in the first row that is blurred. NaN and Inf would reach windows that do not contain them.
  __device__ __forceinline__ Pair first_pivot(int column) const {
    const int row = max(first_row - R, 0);
    const float x = read<float, Sr>(p.sr.data, sr_plane + row * p.sr.strides.row + column * p.sr.strides.column);
    const float y = read<float, Hr>(p.hr.data, hr_plane + row * p.hr.strides.row + column * p.hr.strides.column);
    const auto finite_or_0 = [](float value) { return DeviceMath::absolute(value) <= kLargest<float> ? value : 0.0f; };
    return {finite_or_0(x + y), finite_or_0(x - y)};
  }

  // -------- setup: this lane's part in it

  __device__ __forceinline__ void locate_lane(StripRows<Traits>& rows, CentreRing<Traits>& centres) {
    const int width = static_cast<int>(p.width);
    const int column = first_column + lane * kColumns;
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int position = lane + kLanes * k;
      const int source = padded_index(first_column - R + position, width, Traits::kZeros ? Padding::kZeros : p.padding);
      loads[k] = position < Traits::kLoaded && source >= 0;
      // For kGeneral from the plane's first column, else from this lane's.
      const int columns = Traits::kZeros ? kLanes * k : source;
      sr_column[k] = static_cast<Offset>(Traits::kUnit ? columns : columns * p.sr.strides.column);
      hr_column[k] = static_cast<Offset>(Traits::kUnit ? columns : columns * p.hr.strides.column);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      valid[c] = column + c < width;
      in_image[c] = valid[c] ? 1.0f : 0.0f;
      stores[c] = valid[c] && p.gradient.data != nullptr;
    }

    // With zero padding the rows are read in order; the other paddings compute the place of each row.
    const int lane_column = first_column - R + lane;
    sr_next = static_cast<Offset>(sr_plane + max(first_row - R, 0) * p.sr.strides.row +
                                  (Traits::kUnit ? lane_column : lane_column * p.sr.strides.column));
    hr_next = static_cast<Offset>(hr_plane + max(first_row - R, 0) * p.hr.strides.row +
                                  (Traits::kUnit ? lane_column : lane_column * p.hr.strides.column));
    gradient_next = static_cast<Offset>(gradient_plane + first_row * p.gradient.strides.row +
                                        (Traits::kUnit ? column : column * p.gradient.strides.column));
    map_next = map_plane + first_row * p.map.strides.row + column * p.map.strides.column;

    write_offset = offset_of(rows.row[0].pairs + lane);
    read_offset = offset_of(rows.row[0].pairs + lane * kColumns);
    to_other_row = sizeof(StripRow<Traits>);
    centre_offset = offset_of(&centres[0][lane]);
  }

  // -------- load_row: global memory to registers

  __device__ __forceinline__ void load_row(int row) {
    if constexpr (!Traits::kZeros) {
      const int source = padded_index(row, height, p.padding);
      sr_next = sr_plane + source * p.sr.strides.row;
      hr_next = hr_plane + source * p.hr.strides.row;
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (loads[k]) {
        x[k] = read<float, Sr>(p.sr.data, sr_next + sr_column[k]);
        y[k] = read<float, Hr>(p.hr.data, hr_next + hr_column[k]);
      }
    }
    if constexpr (Traits::kZeros) {
      sr_next += static_cast<Offset>(p.sr.strides.row);
      hr_next += static_cast<Offset>(p.hr.strides.row);
    }
  }

  __device__ __forceinline__ void load_or_clear(int row, NextRow next) {
    if (next == NextRow::kInImage || (next == NextRow::kUnknown && padded_index(row, height, p.padding) >= 0)) {
      load_row(row);
    } else {
#pragma unroll
      for (int k = 0; k < kLoads; ++k) x[k] = y[k] = 0.0f;
    }
  }

  // -------- blur_row: registers to shared memory, along the row, down the rows

  // Blurs the loaded row, loads the one below, and returns the moments of the output row that is now complete.
  __device__ __forceinline__ void blur_row(int row, NextRow next, Moments<float> (&complete)[kColumns]) {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (lane + kLanes * k < Traits::kLoaded) {
        reinterpret_cast<Pair*>(shared_memory + write_offset)[kLanes * k] = {x[k] + y[k], x[k] - y[k]};
      }
    }
    load_or_clear(row + 1, next);
    __syncwarp();

    Pair mean[kColumns] = {}, square[kColumns] = {};
    *reinterpret_cast<CentreDifference*>(shared_memory + centre_offset) = blur_along_row(read_offset, mean, square);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const Pair m = multiply_add(p.taps[R], mean[c], partial_mean[c][0]);
      const Pair q = multiply_add(p.taps[R], square[c], partial_square[c][0]);
      complete[c] = {m.s + pivot.s, m.d + pivot.d, q.s - m.s * m.s, q.d - m.d * m.d};
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      row_mean[c] = mean[c];
      row_excess[c] = excess_of(mean[c], square[c]);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      add_to_column(partial_mean[c], mean[c], {0.0f, 0.0f});
      add_to_column(partial_square[c], square[c], {p.twice_c2, 0.0f});
    }
    write_offset += to_other_row;
    read_offset += to_other_row;
    to_other_row = -to_other_row;
    centre_offset = rows_later(1);
  }

  // Applies the taps along a row of shared memory to (s, d), less the pivots, and to their squares.
  __device__ __forceinline__ CentreDifference blur_along_row(uint32_t row_offset, Pair (&mean)[kColumns],
                                                             Pair (&square)[kColumns]) const {
    const auto* const chunks = reinterpret_cast<const TwoPairs*>(shared_memory + row_offset);
    TwoPairs chunk;
    CentreDifference centre;
#pragma unroll
    for (int j = Traits::kReach - 1; j >= 0; --j) {
      if (j % 2 == 1) chunk = chunks[j / 2];
      const Pair pair = add(chunk.pair[j % 2], -pivot);
      const Pair squared = ::pspl::cuda::square(pair);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int from_centre = j - c - R;  // of column c's window
        if (from_centre < -R || from_centre > R) continue;
        if (from_centre == 0) centre.value[c] = chunk.pair[j % 2].d;
        const float tap = p.taps[from_centre < 0 ? -from_centre : from_centre];
        mean[c] = multiply_add(tap, pair, mean[c]);
        square[c] = multiply_add(tap, squared, square[c]);
      }
    }
    return centre;
  }

  // -------- the pivots
  //
  // A variance is a small difference of large numbers where the pivot is far from the window's values. So each lane has
  // pivots of s and d of its own, which follow the image. To move them moves the partial sums, which each get an error
  // of 2^-24 of the square of the move, times the weight of their rows so far. That is harmless at the first row beyond
  // an edge: the windows that end above it are complete, those that end below it have the edge in their variance, and
  // in those that begin with it the row has the weight of the outermost tap only. Where that is large, in a window that
  // is small or has a large sigma, these windows begin again, with the new pivots.
  //
  // Each column's window is compared with its own variance: an edge or the border, which is in only one of the windows
  // or weighs more in it, would hide how far the other one is from the pivots.

  static __device__ __forceinline__ float weighted_square(Pair mean, Pair weight) {
    return weight.s * mean.s * mean.s + weight.d * mean.d * mean.d;
  }

  // The weighted square of a window's distance from the pivots (see kFarS) less its variance, along a row.
  static __device__ __forceinline__ float excess_of(Pair mean, Pair square) {
    return weighted_square(mean, {1.0f + 1.0f / kFarS, 1.0f + 1.0f / kFarD}) - (square.s + square.d);
  }

  // Whether a window of the warp is far from its pivots in the row that was just added.
  __device__ __forceinline__ bool is_far() const {
    return __any_sync(kFullWarp, row_excess[0] > p.twice_c2 || row_excess[1] > p.twice_c2);
  }

  // Moves the pivots of each lane to the mean along the row, in the farther one of its windows.
  __device__ __forceinline__ void move_pivots() {
    // All lanes at once, because their turns would soon come, but not to a mean that is not typical of its row: one
    // whose square is below the variance, because of a single large value, or NaN.
    const bool second = row_excess[1] > row_excess[0];
    const Pair mean = second ? row_mean[1] : row_mean[0];
    const float excess = second ? row_excess[1] : row_excess[0];
    const bool typical = weighted_square(mean, {1.0f - 1.0f / kFarS, 1.0f - 1.0f / kFarD}) + excess > 0.0f;
    const Pair move{typical ? mean.s : 0.0f, typical ? mean.d : 0.0f};
    pivot = add(pivot, move);
    Pair shift{0.0f, 0.0f};  // of the means in partial sum k: minus the move, times the taps that are in it
#pragma unroll
    for (int k = 2 * R - 1; k >= 0; --k) {
      shift = multiply_add(p.taps[tap_of(k)], -move, shift);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        // Less the move times the mean before and after. The sum of both would need a copy of every mean.
        partial_square[c][k] = multiply_add(-move, partial_mean[c][k], partial_square[c][k]);
        partial_mean[c][k] = add(partial_mean[c][k], shift);
        partial_square[c][k] = multiply_add(-move, partial_mean[c][k], partial_square[c][k]);
      }
    }
    if (p.taps[R] > kHeavyTap) begin_again();
  }

  // Computes the newest partial sum, which has only the row that was just added, from the pivots as they are now.
  __device__ __forceinline__ void begin_again() {
    Pair mean[kColumns] = {}, square[kColumns] = {};
    blur_along_row(read_offset + to_other_row, mean, square);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      partial_mean[c][2 * R - 1] = multiply_add(p.taps[R], mean[c], {0.0f, 0.0f});
      partial_square[c][2 * R - 1] = multiply_add(p.taps[R], square[c], {p.twice_c2, 0.0f});
    }
  }

  // -------- down the rows

  // The tap of the row that is added to partial sum k: the sum is the window of row r - R + 1 + k.
  static __device__ __forceinline__ int tap_of(int k) { return k < R ? R - 1 - k : k + 1 - R; }

  // Adds a row's value to the output rows that it reaches below the complete one. Every sum is written one slot below
  // the one it was read from, so the shift needs no instruction. A new sum starts at `start`.
  __device__ __forceinline__ void add_to_column(Pair (&sum)[2 * R], Pair value, Pair start) {
#pragma unroll
    for (int k = 0; k + 1 < 2 * R; ++k) sum[k] = multiply_add(p.taps[tap_of(k)], value, sum[k + 1]);
    sum[2 * R - 1] = multiply_add(p.taps[R], value, start);
  }

  // -------- emit_row: moments to outputs

  __device__ __forceinline__ void emit_row(const Moments<float> (&complete)[kColumns]) {
    // The row R above the one just written. The next slot of the ring holds the row kRing - 1 above it.
    const auto centre = *reinterpret_cast<const CentreDifference*>(shared_memory + rows_later(Traits::kRing - 1 - R));
    // Beyond the right edge of a zero-padded image the difference is 0, and so is its l1 loss: no test is needed.
    constexpr bool kZeroBeside = Traits::kZeros && !kHasAnyDistance<Traits::kWork>;
    float gradient[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const bool counts = kZeroBeside || valid[c];
      gradient[c] = emit_pixel<Traits::kWork>(p, complete[c], inverse_delta, centre.value[c], counts, in_image[c],
                                              map_next + c * p.map.strides.column, sums);
    }
    store_gradients(gradient);
    gradient_next += static_cast<Offset>(p.gradient.strides.row);
    map_next += p.map.strides.row;
  }

  __device__ __forceinline__ void store_gradients(const float (&gradient)[kColumns]) {
    if (Traits::kAccess == Access::kGeneral && p.gradient.dtype == DType::kFloat32) {
      store_as<float>(gradient);
    } else {
      store_as<typename Traits::Gradient>(gradient);
    }
  }

  template <typename E>
  __device__ __forceinline__ void store_as(const float (&gradient)[kColumns]) {
    E* const to = static_cast<E*>(p.gradient.data) + gradient_next;
    if constexpr (Traits::kUnit) {
      if (stores[0]) store_pair(to, gradient[0], gradient[1]);
    } else {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (stores[c]) to[static_cast<Offset>(c * p.gradient.strides.column)] = round_to<E>(gradient[c]);
      }
    }
  }

  // -------- offsets in shared memory, advanced from row to row: computing them from the row's number would take
  // several instructions each

  __device__ __forceinline__ uint32_t offset_of(const void* place) const {
    return static_cast<uint32_t>(static_cast<const unsigned char*>(place) - shared_memory);
  }

  __device__ __forceinline__ uint32_t rows_later(int count) const {
    constexpr uint32_t kBytes = sizeof(CentreRing<Traits>);
    return (centre_offset & ~(kBytes - 1)) |
           ((centre_offset + count * sizeof(CentreRing<Traits>) / Traits::kRing) & (kBytes - 1));
  }

  const ForwardParams<float>& p;
  const StripPlan& plan;
  unsigned char* const shared_memory;
  StripSums& sums;
  const int lane;

  int height;
  int first_row;  // of the output
  int first_column;
  int64_t sr_plane, hr_plane, gradient_plane, map_plane;
  float inverse_delta;
  Pair pivot;                  // of s and d
  Pair row_mean[kColumns];     // of the row that was blurred last, less the pivots
  float row_excess[kColumns];  // see excess_of

  // Lane flags: whether this lane does load k, and whether it sums and stores output column c.
  bool loads[kLoads], valid[kColumns], stores[kColumns];
  float in_image[kColumns];  // 1 where valid, else 0
  Offset sr_column[kLoads], hr_column[kLoads];
  Offset sr_next, hr_next, gradient_next;  // this lane's place in the next row
  int64_t map_next;
  uint32_t write_offset, read_offset, to_other_row, centre_offset;

  float x[kLoads] = {}, y[kLoads] = {};  // the row loaded last; zeros where the image has no row or no column
  // [c][k]: sums so far of output row r - R + 1 + k, about the pivots.
  Pair partial_mean[kColumns][2 * R] = {}, partial_square[kColumns][2 * R] = {};
};

// ---------------------------------------------------------------- kernel

// 128 registers let four blocks of four warps share a multiprocessor. The general kernels need registers for more
// addresses and sums.
template <typename Traits>
constexpr int kMinBlocks = Traits::kUnit && !kHasStats<Traits::kWork> ? 4 : 3;

template <typename Traits>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Traits>)
    strip_forward(const __grid_constant__ ForwardParams<float> p, const __grid_constant__ StripPlan plan,
                  const Workspace workspace) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<StripShared<Traits>*>(shared_memory);
  // The shuffle tells the compiler that the index is the same in the whole warp, so counters and plane offsets are
  // warp-uniform and __syncwarp() needs no branch. Without it, registers spill.
  const uint32_t warp = __shfl_sync(kFullWarp, threadIdx.x / kLanes, 0);
  const uint32_t strip = blockIdx.x * kWarps + warp;
  typename StripWalker<Traits>::StripSums sums;
  if (strip < plan.strips) {
    StripWalker<Traits> walker(p, plan, strip, threadIdx.x % kLanes, shared.rows[warp], shared.centres[warp],
                               shared_memory, sums);
    walker.walk();
  }
  reduce_and_store(p, sums, workspace, shared.reduce);
}

// ---------------------------------------------------------------- launch

// Whether the offsets of a walk through an image fit 32 bits. It ends one row below the image, and up to three warps of
// columns to the right of it.
inline bool has_short_offsets(const ForwardParams<float>& p, const Strides& image) {
  int64_t end = p.height * image.row + (p.width + 3 * kLanes) * image.column;
  for (int i = 0; i < kLeadingDims; ++i) end += (p.leading[i] - 1) * image.leading[i];
  return end <= INT32_MAX;
}

// The most specialised access that a call allows.
template <typename Sr>
Access access_of(const ForwardParams<float>& p) {
  const GradientImage& out = p.gradient;
  const DType gradient = std::is_same_v<SavedElement<Sr>, Sr> ? p.sr.dtype : DType::kFloat32;
  const bool typed = out.data == nullptr || out.dtype == gradient;
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

// The largest window, 11 x 11, has kernels that omit what a call does not need; each other has one general kernel.
// Instantiated in instances/, one file per pair of element types, which compile in parallel.
template <typename Sr, typename Hr>
cudaError_t launch_strips(const ForwardParams<float>& p, const Workspace& workspace, const Device& device,
                          cudaStream_t stream) {
  const auto run = [&](auto traits) {
    using Traits = decltype(traits);
    constexpr int kBytes = sizeof(StripShared<Traits>);
    static_assert(kBytes <= 48 * 1024, "more needs an opt-in per kernel");
    const StripPlan plan = plan_strips(p.planes(), static_cast<int>(p.height), static_cast<int>(p.width), p.radius,
                                       resident_blocks(kMinBlocks<Traits>, kBytes, device), device);
    return launch(&strip_forward<Traits>, strip_blocks(plan), kBytes, stream, p, plan, workspace);
  };
  const Access access = access_of<Sr>(p);
  const bool map = p.map.data != nullptr;
  const bool stats = p.stats != nullptr;
  const bool l1 = p.distance == Distance::kL1;
  if (p.radius == 1) return run(StripTraits<Sr, Hr, 1, Access::kGeneral, Work::kAll>{});
  if (p.radius == 2) return run(StripTraits<Sr, Hr, 2, Access::kGeneral, Work::kAll>{});
  if (p.radius == 3) return run(StripTraits<Sr, Hr, 3, Access::kGeneral, Work::kAll>{});
  if (p.radius == 4) return run(StripTraits<Sr, Hr, 4, Access::kGeneral, Work::kAll>{});
  if (p.radius != kMaxStripRadius) return cudaErrorInvalidValue;
  if (access == Access::kUnit && !map) {
    if (l1 && stats) return run(StripTraits<Sr, Hr, kMaxStripRadius, Access::kUnit, Work::kL1Stats>{});
    if (l1) return run(StripTraits<Sr, Hr, kMaxStripRadius, Access::kUnit, Work::kL1>{});
    if (!stats) return run(StripTraits<Sr, Hr, kMaxStripRadius, Access::kUnit, Work::kDistance>{});
  }
  if (access == Access::kSpaced && !map && !stats) {
    if (l1) return run(StripTraits<Sr, Hr, kMaxStripRadius, Access::kSpaced, Work::kL1>{});
    return run(StripTraits<Sr, Hr, kMaxStripRadius, Access::kSpaced, Work::kDistance>{});
  }
  if constexpr (std::is_same_v<Sr, Hr>) {
    if (access == Access::kUnit) return run(StripTraits<Sr, Hr, kMaxStripRadius, Access::kUnit, Work::kAll>{});
    if (!map && !stats) return run(StripTraits<Sr, Hr, kMaxStripRadius, Access::kGeneral, Work::kDistance>{});
  }
  return run(StripTraits<Sr, Hr, kMaxStripRadius, Access::kGeneral, Work::kAll>{});
}

}  // namespace pspl::cuda
