// The fused forward kernel for windows of 3 to 11: each warp walks one strip of columns down the rows.
//
//   global memory --(s, d) of row r and their squares--> shared memory --horizontal taps--> 4 moments of row r
//                 --vertical taps--> 2 R partial sums per moment and column, in registers
//                 --row r - R is complete--> M_s, M_a, residual, sums
//
// Each row is read once, plus R rows of halo above and below the strip. The warps of a block share nothing until the
// final sum, so a row costs one __syncwarp and no block barrier. The next row's loads are in flight while this one is
// blurred.
#pragma once

#include <type_traits>

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
  // A lane's own differences wait R rows for their window to be complete.
  static constexpr int kDelay = R + 1 <= 4 ? 4 : 8;
  static_assert(kDelay > R && (kDelay & (kDelay - 1)) == 0);
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

// The differences at a lane's own columns.
template <typename T, int kColumns>
struct alignas(sizeof(T) * kColumns) Own {
  T difference[kColumns];
};

// One row of a strip, as it was loaded. Squares are formed once per pixel here, not once per tap.
template <typename T, int R>
struct alignas(16) StripRow {
  Pair<T> pairs[StripTraits<T, R>::kPitch];
  Pair<T> squares[StripTraits<T, R>::kPitch];
};

// What a warp keeps of the rows that it walks.
template <typename T, int R>
struct StripRows {
  // Two, because a lane that is ahead writes the next row while another still reads this one.
  StripRow<T, R> row[2];
};

// Each lane's own differences in the last rows. Only that lane touches them.
template <typename T, int R>
using DelayLine = Own<T, StripTraits<T, R>::kColumns>[StripTraits<T, R>::kDelay][kLanes];

template <typename T, int R>
struct StripShared {
  // First, because a place in a delay line wraps around by its bits: its offset is a multiple of its size.
  DelayLine<T, R> delay[kWarps];
  static_assert((sizeof(DelayLine<T, R>) & (sizeof(DelayLine<T, R>) - 1)) == 0);
  StripRows<T, R> rows[kWarps];
  ReduceShared reduce;
};

// How the planes are cut: strips of StripTraits::kWidth columns and `rows` rows. Channels follow one another first, so
// that the warps of a block read the same cache lines when the image is channels_last.
struct StripPlan {
  uint32_t strips;
  uint32_t across;
  uint32_t down;
  int32_t rows;
};

// What a kernel is specialised for. The common case in training gets a kernel that does nothing else.
enum class Columns {
  kUnit,     // kSpaced, with column stride 1 in both images and two residuals that
             // fit one aligned store
  kSpaced,   // padding zeros, and offsets that fit 32 bits: what is left of
             // channels_last, crops and views
  kStrided,  // everything
};

// Mean of x + y at a few pixels of the strip. NaN and Inf stay out of it: they must not leave their own windows.
template <typename T, typename E>
__device__ T strip_pivot(const Params<T>& p, const Reader<T, E>& read_sr, const Reader<T, E>& read_hr, int64_t sr_plane,
                         int64_t hr_plane, int first_row, int end_row, int column) {
  constexpr int kSampledRows = 4;
  T sum = 0;
  T count = 0;
#pragma unroll
  for (int i = 0; i < kSampledRows; ++i) {
    const int row = first_row + (2 * i + 1) * (end_row - first_row) / (2 * kSampledRows);
    const T value = read_sr(sr_plane + row * p.sr.stride.row + column * p.sr.stride.column) +
                    read_hr(hr_plane + row * p.hr.stride.row + column * p.hr.stride.column);
    const bool finite = absolute(value) <= kLargest<T> / (kSampledRows * kLanes);
    sum += finite ? value : T(0);
    count += finite ? T(1) : T(0);
  }
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kFullWarp, sum, offset);
    count += __shfl_xor_sync(kFullWarp, count, offset);
  }
  return count > T(0) ? sum * reciprocal(count) : T(0);
}

// Where the walk is in an image, in elements. In the common case that fits 32 bits (columns_of() sees to it), which
// saves a register and an instruction for each of three images.
template <Columns kLayout>
using Offset = std::conditional_t<kLayout == Columns::kStrided, int64_t, int32_t>;

// What is known of the row below the one that is being taken in.
enum class Below {
  kInside,   // the image has it
  kUnknown,  // it may be padding
  kUnused,   // no output needs it
};

template <typename T, typename E, int R, Columns kLayout, Work kWork>
__device__ __forceinline__ void walk_strip(const Params<T>& p, const StripPlan& plan, uint32_t strip, int lane,
                                           StripRows<T, R>& rows, DelayLine<T, R>& delay, unsigned char* shared_memory,
                                           Sums<T, kSumsOf<kWork>>& sums) {
  using Traits = StripTraits<T, R>;
  constexpr int kColumns = Traits::kColumns;
  constexpr int kLoads = Traits::kLoads;
  constexpr bool kZeros = kLayout != Columns::kStrided;
  constexpr bool kUnit = kLayout == Columns::kUnit;
  constexpr bool kPairs = kUnit && kColumns == 2;
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
  const int64_t sr_plane = p.sr.stride.plane_offset(i0, i1, channel);
  const int64_t hr_plane = p.hr.stride.plane_offset(i0, i1, channel);
  const T inverse_width = inverse_width_of(p);
  // This lane's outputs start here.
  const int column = first_column + lane * kColumns;
  const T pivot = strip_pivot(p, read_sr, read_hr, sr_plane, hr_plane, first_row, end_row, min(column, width - 1));

  // What this lane takes part in, as bits: a predicate would be computed again for every row. One instruction turns
  // the lowest ones into predicates.
  constexpr int kLoadBit = 1 << 1;    // << k: loads column first_column - R + lane + 32 k of every row
  constexpr int kPairBit = 1 << 4;    // both residuals are stored at once
  constexpr int kValidBit = 1 << 8;   // << c: output column c is inside the image
  constexpr int kStoreBit = 1 << 12;  // << c: its residual is stored on its own
  static_assert(kLoads <= 3);
  int part = 0;
  Offset<kLayout> sr_column[kLoads];
  Offset<kLayout> hr_column[kLoads];
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    const int position = lane + kLanes * k;
    const int inside = padded_index(first_column - R + position, width, kZeros ? Padding::kZeros : p.padding);
    if (position < Traits::kLoaded && inside >= 0) part |= kLoadBit << k;
    // Of kStrided the column in the image, of the others the distance from this lane's first.
    const int from_next = kZeros ? kLanes * k : inside;
    sr_column[k] = static_cast<Offset<kLayout>>(kUnit ? from_next : from_next * p.sr.stride.column);
    hr_column[k] = static_cast<Offset<kLayout>>(kUnit ? from_next : from_next * p.hr.stride.column);
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    if (column + c >= width) continue;
    part |= kValidBit << c;
    if (p.residual.data != nullptr) part |= kPairs ? kPairBit : kStoreBit << c;
  }

  // Padded by zeros, the walk goes from row to row inside the image; with the other paddings it jumps.
  const int lane_column = first_column - R + lane;
  Offset<kLayout> sr_next = static_cast<Offset<kLayout>>(sr_plane + max(first_row - R, 0) * p.sr.stride.row +
                                                         (kUnit ? lane_column : lane_column * p.sr.stride.column));
  Offset<kLayout> hr_next = static_cast<Offset<kLayout>>(hr_plane + max(first_row - R, 0) * p.hr.stride.row +
                                                         (kUnit ? lane_column : lane_column * p.hr.stride.column));
  Offset<kLayout> residual_next =
      static_cast<Offset<kLayout>>(p.residual.stride.plane_offset(i0, i1, channel) + first_row * p.residual.stride.row +
                                   column * p.residual.stride.column);
  int64_t map_next =
      p.map.stride.plane_offset(i0, i1, channel) + first_row * p.map.stride.row + column * p.map.stride.column;

  // The row that was fetched last; zeros where the image has no row or no column.
  T x[kLoads] = {};
  T y[kLoads] = {};
  const auto fetch = [&](int row) {
    if constexpr (!kZeros) {
      const int inside = padded_index(row, height, p.padding);
      sr_next = sr_plane + inside * p.sr.stride.row;
      hr_next = hr_plane + inside * p.hr.stride.row;
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (part & (kLoadBit << k)) {
        x[k] = read_sr(sr_next + sr_column[k]);
        y[k] = read_hr(hr_next + hr_column[k]);
      }
    }
    if constexpr (kZeros) {
      sr_next += static_cast<Offset<kLayout>>(p.sr.stride.row);
      hr_next += static_cast<Offset<kLayout>>(p.hr.stride.row);
    }
  };
  const auto fetch_or_clear = [&](int row, Below below) {
    if (below == Below::kInside || (below == Below::kUnknown && padded_index(row, height, p.padding) >= 0)) {
      fetch(row);
    } else {
#pragma unroll
      for (int k = 0; k < kLoads; ++k) x[k] = y[k] = T(0);
    }
  };

  // This lane's places in shared memory, as offsets that move from row to row. Computed from the row's number instead,
  // they would cost it several instructions each.
  const auto offset_of = [&](const void* place) {
    return static_cast<uint32_t>(static_cast<const unsigned char*>(place) - shared_memory);
  };
  uint32_t put_at = offset_of(rows.row[0].pairs + lane);
  uint32_t take_at = offset_of(rows.row[0].pairs + lane * kColumns);
  uint32_t to_other_row = sizeof(StripRow<T, R>);
  constexpr uint32_t kSquares = sizeof(rows.row[0].pairs);
  uint32_t own_at = offset_of(&delay[0][lane]);
  const auto rows_later = [&](int count) {
    constexpr uint32_t kRing = sizeof(DelayLine<T, R>);
    return (own_at & ~(kRing - 1)) | ((own_at + count * sizeof(delay[0])) & (kRing - 1));
  };

  // partial[m][c][k]: sum so far of output row r - R + 1 + k. Each new row adds to all of them, and every sum is
  // written one slot lower than it was read: the shift costs nothing.
  T partial[4][kColumns][2 * R] = {};

  // Takes in the fetched row, fetches the one below, and returns the moments of the output row that is now complete.
  const auto advance = [&](int row, Below below, Moments<T>(&complete)[kColumns]) {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const T s = (x[k] + y[k]) - pivot;
      const T d = x[k] - y[k];
      if (lane + kLanes * k < Traits::kLoaded) {
        auto* const to = reinterpret_cast<Pair<T>*>(shared_memory + put_at) + kLanes * k;
        to[0] = {s, d};
        to[Traits::kPitch] = {s * s, d * d};
      }
    }
    fetch_or_clear(row + 1, below);
    __syncwarp();

    T moment[kColumns][4];
    // First the means, then the squares: half as many values are in flight at once.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto* const chunks =
          reinterpret_cast<const Chunk<T, Traits::kChunk>*>(shared_memory + take_at + half * kSquares);
      Chunk<T, Traits::kChunk> chunk;
      Own<T, kColumns> own;
      T blurred[2][kColumns] = {};
#pragma unroll
      for (int j = 0; j < Traits::kReach; ++j) {
        if (j % Traits::kChunk == 0) chunk = chunks[j / Traits::kChunk];
        const Pair<T> pair = chunk.pair[j % Traits::kChunk];
        const T value[2] = {pair.sum, pair.difference};
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const int distance = j - c - R;  // from the centre of column c's window
          if (distance < -R || distance > R) continue;
          if (distance == 0) own.difference[c] = pair.difference;
          const T tap = p.taps[distance < 0 ? -distance : distance];
#pragma unroll
          for (int m = 0; m < 2; ++m) blurred[m][c] += tap * value[m];
        }
      }
      if (half == 0) *reinterpret_cast<Own<T, kColumns>*>(shared_memory + own_at) = own;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          T(&sum)[2 * R] = partial[2 * half + m][c];
          const T value = blurred[m][c];
          moment[c][2 * half + m] = sum[0] + p.taps[R] * value;
#pragma unroll
          for (int k = 0; k + 1 < 2 * R; ++k) {
            sum[k] = sum[k + 1] + p.taps[R - 1 - k < 0 ? k + 1 - R : R - 1 - k] * value;
          }
          sum[2 * R - 1] = p.taps[R] * value + (half == 1 && m == 0 ? p.twice_c2 : T(0));
        }
      }
    }
    put_at += to_other_row;
    take_at += to_other_row;
    to_other_row = -to_other_row;
    own_at = rows_later(1);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) complete[c] = {moment[c][0], moment[c][1], moment[c][2], moment[c][3]};
  };

  const auto finish = [&](const Moments<T>(&complete)[kColumns]) {
    // R rows before the one just written: the place after it stands for kDelay - 1 rows before.
    const auto own = *reinterpret_cast<const Own<T, kColumns>*>(shared_memory + rows_later(Traits::kDelay - 1 - R));
    // Beside a zero-padded image the difference is 0, and so is its l1 or l2: nothing to leave out.
    const bool zero_beside =
        kZeros && (kWork == Work::kL1 || (kWork == Work::kDistance && p.distance == Distance::kL2));
    T residual[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const bool counts = zero_beside || (part & (kValidBit << c)) != 0;
      residual[c] = pixel_residual<kWork>(p, complete[c], pivot, inverse_width, own.difference[c], counts,
                                          map_next + c * p.map.stride.column, sums);
      if (!kPairs && (part & (kStoreBit << c))) {
        p.residual.data[residual_next + static_cast<Offset<kLayout>>(c * p.residual.stride.column)] = residual[c];
      }
    }
    if constexpr (kPairs) {
      if (part & kPairBit) *reinterpret_cast<Pair<T>*>(p.residual.data + residual_next) = {residual[0], residual[1]};
    }
    residual_next += static_cast<Offset<kLayout>>(p.residual.stride.row);
    map_next += p.map.stride.row;
  };

  // Three loops, because a branch in the middle one, where the time goes, would cost it registers: the first 2 R rows
  // complete no output row, and below the last ones there is nothing to fetch.
  Moments<T> complete[kColumns];
  int row = first_row - R;
  fetch_or_clear(row, Below::kUnknown);
  for (; row < first_row + R; ++row) advance(row, Below::kUnknown, complete);
  const int last = max((kZeros ? min(end_row + R, height) : end_row + R) - 1, first_row + R);
  for (int left = last - (first_row + R); left > 0; --left, ++row) {
    advance(row, kZeros ? Below::kInside : Below::kUnknown, complete);
    finish(complete);
  }
#pragma unroll 1
  for (int left = end_row + R - last; left > 0; --left) {
    advance(row, Below::kUnused, complete);
    finish(complete);
  }
}

// 128 registers let four blocks of four warps share a multiprocessor. The general kernels carry more addresses and
// sums, float64 twice the width.
template <typename T, Columns kLayout, Work kWork>
constexpr int kMinBlocks = sizeof(T) == 8                                   ? 2
                           : kLayout == Columns::kUnit && !kHasStats<kWork> ? 4
                                                                            : 3;

template <typename T, typename E, int R, Columns kLayout, Work kWork>
__global__ void __launch_bounds__(kThreads, (kMinBlocks<T, kLayout, kWork>))
    strip_kernel(const __grid_constant__ Params<T> p, const __grid_constant__ StripPlan plan,
                 const Workspace workspace) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<StripShared<T, R>*>(shared_memory);
  // The shuffle tells the compiler what it can't see: that a warp walks one strip, so that counters and plane offsets
  // are scalars of the warp and __syncwarp() needs no branch. Without it there are spills (docs/performance.md).
  const uint32_t warp = __shfl_sync(kFullWarp, threadIdx.x / kLanes, 0);
  const uint32_t strip = blockIdx.x * kWarps + warp;
  Sums<T, kSumsOf<kWork>> sums;
  if (strip < plan.strips) {
    walk_strip<T, E, R, kLayout, kWork>(p, plan, strip, threadIdx.x % kLanes, shared.rows[warp], shared.delay[warp],
                                        shared_memory, sums);
  }
  reduce_and_store(p, sums, workspace, shared.reduce);
}

}  // namespace pspl::cuda
