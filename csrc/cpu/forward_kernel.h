// The forward pass. A job is a number of tiles: strips of columns of a band of rows of one plane. A tile is processed
// from top to bottom, two output rows at a time:
//   read_rows          sr and hr to s = sr + hr and d = sr - hr, with their halo
//   blur_along_rows    each row along itself: mean and variance of s and d, kept in a ring of 2 radius + 2 rows
//   blur_down          the rows of the ring down the columns: the moments of two output rows
//   RowOutputs::emit   the moments of a row to all its outputs
// Everything in use stays in the first-level cache.
#pragma once

#include <cstdint>

#include "../pspl_math.h"
#include "../pspl_params.h"
#include "aligned_buffer.h"
#include "dispatch.h"
#include "float_environment.h"
#include "instruction_set.h"
#include "row_outputs.h"
#include "rows.h"
#include "simd.h"
#include "tiling.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

// The taps, broadcast. A negative kRadius stands for one known at run time only.
template <typename T, int kRadius>
struct Window {
  Vector<T> tap[(kRadius >= 0 ? kRadius : kMaxRadius) + 1];
  int runtime_radius;

  PSPL_INLINE explicit Window(const ForwardParams<T>& p) : runtime_radius(p.radius) {
    for (int k = 0; k <= radius(); ++k) tap[k] = Vector<T>(p.taps[k]);
  }
  PSPL_INLINE int radius() const { return kRadius >= 0 ? kRadius : runtime_radius; }
};

// Two output rows share the pivot of the upper one. The error that a distant pivot causes in the lower row is at most
// 2.5 * 2^-24 times the squared distance; the variance of the lower window is at least taps[1] times it.
template <typename T>
bool can_share_pivot(const ForwardParams<T>& p) {
  return p.radius >= 1 && p.taps[1] >= T(0.05);
}

// A negative kRadius also stands for a window too narrow for a shared pivot.
template <typename T, int kRadius>
class TileKernel {
  static_assert(kStripColumns<T> % kLanes<T> == 0, "a strip is a whole number of vectors wide");
  using V = Vector<T>;
  using Window = PSPL_ISA::Window<T, kRadius>;

  // The moments of a row along itself, and d at the centre of each window.
  struct RingRow : BlurredRow<T> {
    Row<T> centre_d;
  };

 public:
  TileKernel(const ForwardParams<T>& p, const Tile& tile, T inverse_delta)
      : p(p),
        tile(tile),
        radius(kRadius >= 0 ? kRadius : p.radius),
        vectors(static_cast<int>(ceil_div(tile.right - tile.left, kLanes<T>))),
        reader(p, tile, radius),
        outputs(p, tile, inverse_delta),
        lines(4 * line_vectors()),
        ring(2 * radius + 2),
        ring_twice(2 * (2 * radius + 2)) {
    // Zeros beside the image are its padding. Behind the halo, they keep unused lanes from holding garbage.
    for (int i = 0; i < 4 * line_vectors(); ++i) lines.get()[i] = V(T(0));
    for (int i = 0; i < 2; ++i) input[i] = {line(2 * i), line(2 * i + 1)};
    for (int i = 0; i < 2 * (2 * radius + 2); ++i) ring_twice.get()[i] = ring.get() + i % (2 * radius + 2);
  }

  // Fills the outputs of the tile, and sums[kNumSums].
  void run(double* sums) {
    const int ring_rows = 2 * radius + 2;
    read_rows(tile.top - radius);
    for (int i = 0; i < 2 * radius; i += 2) {
      blur_along_rows(ring_twice.get() + i);
      read_rows(tile.top - radius + i + 2);
      for (int row = 0; row < 2; ++row) reader.prefetch_ahead_of(tile.top - radius + i + 2 + row);
    }
    int start = 0;
    for (int64_t y = tile.top; y < tile.bottom; y += 2) {
      RingRow* const* rows = ring_twice.get() + start;
      blur_along_rows(rows + 2 * radius);
      // A step ahead of their use: the loads of the blur straddle the vectors stored here, and would have to wait for
      // stores in flight.
      if (y + 2 < tile.bottom) read_rows(y + 2 + radius);
      for (int i = 0; i < 2 && y + i < tile.bottom; ++i) outputs.prefetch_row(y + i);
      blur_down<&BlurredRow<T>::s>(rows, p.twice_c2);
      reader.prefetch_ahead_of(y + 2 + radius);
      blur_down<&BlurredRow<T>::d>(rows, T(0));
      reader.prefetch_ahead_of(y + 3 + radius);
      for (int i = 0; i < 2 && y + i < tile.bottom; ++i) outputs.emit(y + i, moments[i], rows[radius + i]->centre_d);
      start = (start + 2) % ring_rows;
    }
    outputs.store_sums(sums);
  }

 private:
  int64_t line_vectors() const { return vectors + 2 * ceil_div(radius, kLanes<T>); }
  T* line(int which) const {
    return reinterpret_cast<T*>(lines.get() + which * line_vectors() + ceil_div(radius, kLanes<T>));
  }

  void read_rows(int64_t y) const {
    for (int i = 0; i < 2; ++i) reader.read(y + i, input[i]);
  }

  // ---------------------------------------------------------------- blur_along_rows

  void blur_along_rows(RingRow* const* rows) const {
    for (int i = 0; i < 2; ++i) blur_along_row(input[i].s, input[i].d, *rows[i]);
  }

  // The pixel at the centre is subtracted from its neighbours before they are squared: rounding errors stay small
  // beside the variance whatever the mean, and NaN and Inf stay within their windows. The taps are symmetric: pixels at
  // the same distance are added first, by the adders, which run beside the multipliers. s and d take turns, so that the
  // processor always finds operations that do not wait for each other. centre - pixel, and not the reverse: the
  // instruction takes its second operand from memory, but not its first.
  void blur_along_row(const T* s, const T* d, RingRow& row) const {
    const Window window(p);
    for (int v = 0, end = vectors; v < end; ++v) {
      const T* const at[] = {s + v * kLanes<T>, d + v * kLanes<T>};
      const V centre[] = {V::load(at[0]), V::load(at[1])};
      V offset[] = {V(T(0)), V(T(0))}, square[] = {V(T(0)), V(T(0))};
#pragma GCC unroll 8
      for (int k = window.radius(); k >= 1; --k) {
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const V left = centre[i] - V::load(at[i] - k);
          const V right = centre[i] - V::load(at[i] + k);
          offset[i] = multiply_add(left + right, window.tap[k], offset[i]);
          square[i] = multiply_add(multiply_add(left, left, right * right), window.tap[k], square[i]);
        }
      }
      row.s.mean[v] = centre[0] - offset[0];
      row.s.variance[v] = multiply_add(-offset[0], offset[0], square[0]);
      row.d.mean[v] = centre[1] - offset[1];
      row.d.variance[v] = multiply_add(-offset[1], offset[1], square[1]);
      row.centre_d[v] = centre[1];
    }
  }

  // ---------------------------------------------------------------- blur_down

  // Over the rows of a window, or some of them: of x and of x^2, where x is a pivot minus the mean of a row.
  struct Centred {
    V mean;
    V square;
  };

  // The variance of a window is the mean of the variances of its rows, plus the variance of their means: of mean^2 +
  // variance, once a pivot near the means is subtracted from them. To the variance, `bias` is added. kOf is s or d.
  template <RowMoments<T> BlurredRow<T>::* kOf>
  void blur_down(RingRow* const* rows, T bias) {
    const Window window(p);
    const int radius = window.radius();
    for (int v = 0, end = vectors; v < end; ++v) {
      const auto centred = [&](V pivot) {
        return [rows, v, pivot](int row) -> Centred {
          const RowMoments<T>& of = rows[row]->*kOf;
          const V mean = pivot - of.mean[v];
          return {mean, multiply_add(mean, mean, of.variance[v])};
        };
      };
      V pivots[2] = {(rows[radius]->*kOf).mean[v], (rows[radius]->*kOf).mean[v]};
      Centred windows[2] = {{V(T(0)), V(bias)}, {V(T(0)), V(bias)}};
      add_rows(window, centred(pivots[0]), windows[0], windows[1]);
      if constexpr (kRadius < 0) {
        if (!can_share_pivot(p)) {
          pivots[1] = (rows[radius + 1]->*kOf).mean[v];
          Centred unused = windows[1] = {V(T(0)), V(bias)};
          add_rows(window, centred(pivots[1]), unused, windows[1]);
        }
      }
      for (int i = 0; i < 2; ++i) {
        RowMoments<T>& out = moments[i].*kOf;
        out.mean[v] = pivots[i] - windows[i].mean;
        out.variance[v] = multiply_add(-windows[i].mean, windows[i].mean, windows[i].square);
      }
    }
  }

  // Adds the weighted rows of the two windows whose centres are rows radius and radius + 1. Of the rows at distance k
  // from the two centres, half are those at distance k - 1 from the other centre. The small terms are added first.
  template <typename RowAt>
  static PSPL_INLINE void add_rows(const Window& window, RowAt row_at, Centred& upper, Centred& lower) {
    const int radius = window.radius();
    Centred above = row_at(0), below = row_at(2 * radius + 1);
#pragma GCC unroll 8
    for (int k = radius; k >= 1; --k) {
      const Centred inner_above = row_at(radius + 1 - k), inner_below = row_at(radius + k);
      upper.mean = multiply_add(above.mean + inner_below.mean, window.tap[k], upper.mean);
      lower.mean = multiply_add(inner_above.mean + below.mean, window.tap[k], lower.mean);
      upper.square = multiply_add(above.square + inner_below.square, window.tap[k], upper.square);
      lower.square = multiply_add(inner_above.square + below.square, window.tap[k], lower.square);
      above = inner_above;
      below = inner_below;
    }
    upper.mean = multiply_add(above.mean, window.tap[0], upper.mean);
    lower.mean = multiply_add(below.mean, window.tap[0], lower.mean);
    upper.square = multiply_add(above.square, window.tap[0], upper.square);
    lower.square = multiply_add(below.square, window.tap[0], lower.square);
  }

  const ForwardParams<T>& p;
  const Tile& tile;
  const int radius;
  const int vectors;
  const RowReader<T> reader;
  RowOutputs<T> outputs;
  const AlignedBuffer<V> lines;  // the memory of input
  InputRow<T> input[2];
  const AlignedBuffer<RingRow> ring;
  const AlignedBuffer<RingRow*>
      ring_twice;            // the rows of the ring, two times: from any start they can be read in order
  BlurredRow<T> moments[2];  // of two output rows; the variance of s includes 2 C2
};

template <typename T>
struct ForwardJobs {
  const ForwardParams<T>& params;
  const Tiling<T> tiling;
  const T inverse_delta;
  double* const sums;  // [tiles][kNumSums]
};

template <typename T, int kRadius>
void forward_job(void* context, int64_t job) {
  const DefaultFloatEnvironment environment;
  const auto& jobs = *static_cast<const ForwardJobs<T>*>(context);
  const int64_t end = jobs.tiling.first_tile(job + 1);
  for (int64_t index = jobs.tiling.first_tile(job); index < end; ++index) {
    const Tile tile = tile_of(jobs.params, jobs.tiling, index);
    TileKernel<T, kRadius>(jobs.params, tile, jobs.inverse_delta).run(jobs.sums + index * kNumSums);
  }
}

template <typename T>
auto forward_job_of(const ForwardParams<T>& params) {
  switch (can_share_pivot(params) ? params.radius : -1) {
    case 1:
      return &forward_job<T, 1>;
    case 2:
      return &forward_job<T, 2>;
    case 3:
      return &forward_job<T, 3>;
    case 4:
      return &forward_job<T, 4>;
    case 5:
      return &forward_job<T, 5>;
    default:
      return &forward_job<T, -1>;
  }
}

template <typename T>
void forward(const ForwardParams<T>& params, ParallelFor parallel_for) {
  const DefaultFloatEnvironment environment;
  const Tiling<T> tiling(params);
  const AlignedBuffer<double> tile_sums(tiling.tiles * kNumSums);
  ForwardJobs<T> jobs{params, tiling, inverse_delta_of<Simd>(params), tile_sums.get()};
  parallel_for(tiling.jobs, forward_job_of<T>(params), &jobs);

  double sums[kNumSums] = {};
  for (int64_t tile = 0; tile < tiling.tiles; ++tile)
    for (int i = 0; i < kNumSums; ++i) sums[i] += tile_sums.get()[tile * kNumSums + i];
  for (int i = 0; i < kNumSums; ++i) store_sum(params, i, sums[i]);
}

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
