// The forward pass. A job is a number of tiles: strips of columns of a band of rows of one plane. A tile is processed
// from top to bottom, two output rows at a time:
//   read_rows          sr and hr to s = sr + hr and d = sr - hr, with their halo
//   blur_along_rows    each row along itself: mean and variance of s and d, kept in a ring of 2 radius + 2 rows
//   blur_down          the rows of the ring down the columns: the moments of two output rows
//   emit_row           similarity, attention, loss and gradient, each in a loop of its own: they are long chains of
//                      dependent operations, and a short loop lets the processor work on several vectors at once
// Everything in use stays in the first-level cache.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../pspl_math.h"
#include "../pspl_params.h"
#include "aligned_buffer.h"
#include "dispatch.h"
#include "elements.h"
#include "instruction_set.h"
#include "rows.h"
#include "simd.h"
#include "tiling.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

// The taps, broadcast. A negative kRadius stands for one known at run time only.
template <typename T, typename V, int kRadius>
struct Window {
  V tap[(kRadius >= 0 ? kRadius : kMaxRadius) + 1];
  int runtime_radius;

  PSPL_INLINE explicit Window(const ForwardParams<T>& p) : runtime_radius(p.radius) {
    for (int k = 0; k <= radius(); ++k) tap[k] = V(p.taps[k]);
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
  static constexpr int kLanes = PSPL_VECTOR_BYTES / sizeof(T);
  static_assert(kStripColumns<T> % kLanes == 0, "a strip is a whole number of vectors wide");
  using V = Vec<T, kLanes>;
  using Window = PSPL_ISA::Window<T, V, kRadius>;

  static constexpr int kVectors = kStripColumns<T> / kLanes;  // of the widest strip

  // Each a vector for every kLanes columns of a row.
  struct RingRow {
    V mean_s[kVectors];  // over the window along the row
    V variance_s[kVectors];
    V mean_d[kVectors];
    V variance_d[kVectors];
    V centre_d[kVectors];
  };

  // Over the window of an output row. variance_s includes 2 C2.
  struct MomentsRow {
    V mean_s[kVectors];
    V variance_s[kVectors];
    V mean_d[kVectors];
    V variance_d[kVectors];
  };

 public:
  TileKernel(const ForwardParams<T>& params, T inverse_delta, const Tile& tile)
      : p_(params),
        tile_(tile),
        inverse_delta_(inverse_delta),
        radius_(kRadius >= 0 ? kRadius : params.radius),
        columns_(static_cast<int>(tile.right - tile.left)),
        vectors_(static_cast<int>(divide_up(columns_, kLanes))),
        reader_(params, tile, radius_),
        ring_(2 * radius_ + 2),
        rows_(2 * (2 * radius_ + 2)),
        lines_(kLines * line_vectors()) {
    for (int i = 0; i < 2 * (2 * radius_ + 2); ++i) rows_.get()[i] = ring_.get() + i % (2 * radius_ + 2);
    // The zero padding beside the image. Behind the halo, it keeps unused lanes from holding garbage.
    for (int i = 0; i < kSimilarity * line_vectors(); ++i) lines_.get()[i] = V(T(0));
    for (int i = 0; i < vectors_ * kLanes; ++i)
      scalars(kInside)[i] = bit_cast<T>(i < columns_ ? ~typename V::Bits(0) : typename V::Bits(0));
  }

  // Fills the outputs of the tile, and sums[kNumSums].
  void run(double* sums) {
    const int ring_rows = 2 * radius_ + 2;
    read_rows(tile_.top - radius_);
    for (int i = 0; i < 2 * radius_; i += 2) {
      blur_along_rows(rows_.get() + i);
      read_rows(tile_.top - radius_ + i + 2);
      for (int row = 0; row < 2; ++row) reader_.prefetch_ahead_of(tile_.top - radius_ + i + 2 + row);
    }
    int start = 0;
    for (int64_t y = tile_.top; y < tile_.bottom; y += 2) {
      RingRow* const* rows = rows_.get() + start;
      blur_along_rows(rows + 2 * radius_);
      // A step ahead of their use: the loads of the blur straddle the vectors stored here, and would have to wait for
      // stores in flight.
      if (y + 2 < tile_.bottom) read_rows(y + 2 + radius_);
      prefetch_outputs(y);
      blur_down<&RingRow::mean_s, &RingRow::variance_s, &MomentsRow::mean_s, &MomentsRow::variance_s>(rows,
                                                                                                      p_.twice_c2);
      reader_.prefetch_ahead_of(y + 2 + radius_);
      blur_down<&RingRow::mean_d, &RingRow::variance_d, &MomentsRow::mean_d, &MomentsRow::variance_d>(rows, T(0));
      reader_.prefetch_ahead_of(y + 3 + radius_);
      emit_row(y, moments_[0], rows[radius_]->centre_d);
      if (y + 1 < tile_.bottom) emit_row(y + 1, moments_[1], rows[radius_ + 1]->centre_d);
      start = (start + 2) % ring_rows;
    }
    for (int i = 0; i < kNumSums; ++i) {
      sums[i] = 0;
      for (int lane = 0; lane < kLanes; ++lane) sums[i] += sums_[i][lane];
    }
  }

 private:
  // ---------------------------------------------------------------- read_rows

  // Lines of workspace, each as wide as a row with its halo on both sides.
  enum { kS, kD = kS + 2, kSimilarity = kD + 2, kAttention, kLoss, kGradient, kInside, kLines };

  int64_t line_vectors() const { return vectors_ + 2 * divide_up(radius_, kLanes); }
  V* line(int which) const { return lines_.get() + which * line_vectors() + divide_up(radius_, kLanes); }
  T* scalars(int which) const { return reinterpret_cast<T*>(line(which)); }

  void read_rows(int64_t y) const {
    for (int i = 0; i < 2; ++i) reader_.read(y + i, scalars(kS + i), scalars(kD + i));
  }

  // ---------------------------------------------------------------- blur_along_rows

  void blur_along_rows(RingRow* const* rows) const {
    for (int i = 0; i < 2; ++i) blur_along_row(scalars(kS + i), scalars(kD + i), *rows[i]);
  }

  // The pixel at the centre is subtracted from its neighbours before they are squared: rounding errors stay small
  // beside the variance whatever the mean, and NaN and Inf stay within their windows. The taps are symmetric: pixels at
  // the same distance are added first, by the adders, which run beside the multipliers. s and d take turns, so that the
  // processor always finds operations that do not wait for each other. It can subtract a number in memory, but not from
  // one without loading it: hence centre - pixel.
  void blur_along_row(const T* s, const T* d, RingRow& row) const {
    const Window window(p_);
    for (int v = 0, vectors = vectors_; v < vectors; ++v) {
      const T* const at[] = {s + v * kLanes, d + v * kLanes};
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
      row.mean_s[v] = centre[0] - offset[0];
      row.variance_s[v] = multiply_add(-offset[0], offset[0], square[0]);
      row.mean_d[v] = centre[1] - offset[1];
      row.variance_d[v] = multiply_add(-offset[1], offset[1], square[1]);
      row.centre_d[v] = centre[1];
    }
  }

  // ---------------------------------------------------------------- blur_down

  using Line = V[kVectors];

  // The mean of x and of x^2 over the rows of a window, x = pivot - mean of a row.
  struct Sums {
    V mean;
    V square;
  };

  // The variance of a window is the mean of the variances of its rows, plus the variance of their means: of mean^2 +
  // variance, once a pivot near the means is subtracted from them. To the second variance `bias` is added.
  template <Line RingRow::* kMean, Line RingRow::* kVariance, Line MomentsRow::* kMeanOut,
            Line MomentsRow::* kVarianceOut>
  void blur_down(RingRow* const* rows, T bias) {
    const Window window(p_);
    const int radius = window.radius();
    for (int v = 0, vectors = vectors_; v < vectors; ++v) {
      const auto centred = [&](V pivot) {
        return [rows, v, pivot](int row) -> Sums {
          const V mean = pivot - (rows[row]->*kMean)[v];
          return {mean, multiply_add(mean, mean, (rows[row]->*kVariance)[v])};
        };
      };
      V pivots[2] = {(rows[radius]->*kMean)[v], (rows[radius]->*kMean)[v]};
      Sums sums[2] = {{V(T(0)), V(bias)}, {V(T(0)), V(bias)}};
      add_rows(window, centred(pivots[0]), sums[0], sums[1]);
      if constexpr (kRadius < 0) {
        if (!shared_pivot_) {
          pivots[1] = (rows[radius + 1]->*kMean)[v];
          Sums unused = sums[1] = {V(T(0)), V(bias)};
          add_rows(window, centred(pivots[1]), unused, sums[1]);
        }
      }
      for (int i = 0; i < 2; ++i) {
        (moments_[i].*kMeanOut)[v] = pivots[i] - sums[i].mean;
        (moments_[i].*kVarianceOut)[v] = multiply_add(-sums[i].mean, sums[i].mean, sums[i].square);
      }
    }
  }

  // Adds the weighted rows of the two windows whose centres are rows radius and radius + 1. Of the rows at distance k
  // from the two centres, half are those at distance k - 1 from the other centre. The small terms are added first.
  template <typename RowAt>
  static PSPL_INLINE void add_rows(const Window& window, RowAt row_at, Sums& upper, Sums& lower) {
    const int radius = window.radius();
    Sums above = row_at(0), below = row_at(2 * radius + 1);
#pragma GCC unroll 8
    for (int k = radius; k >= 1; --k) {
      const Sums inner_above = row_at(radius + 1 - k), inner_below = row_at(radius + k);
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

  // ---------------------------------------------------------------- emit_row

  // From the moments of a row to all its outputs.
  void emit_row(int64_t y, const MomentsRow& moments, const V* centre_d) {
    similarity_of_row(moments);
    if (map_wanted(Output::kSimilarityMap)) write(p_.map, y, line(kSimilarity));
    if (p_.loss == nullptr && p_.stats == nullptr && p_.gradient.data == nullptr &&
        (p_.map.data == nullptr || p_.output == Output::kSimilarityMap))
      return;
    attention_of_row();
    emit_loss(y, centre_d);
    if (map_wanted(Output::kAttentionMap)) write(p_.map, y, line(kAttention));
    if (map_wanted(Output::kLossMap)) write(p_.map, y, line(kLoss));
    if (p_.stats != nullptr) add_stats(centre_d);
  }

  // loss_of_row() for the distance of the call, a constant in its loop.
  template <int kFirst = 0>
  void emit_loss(int64_t y, const V* centre_d) {
    if (static_cast<int>(p_.distance) == kFirst) return loss_of_row<static_cast<Distance>(kFirst)>(y, centre_d);
    if constexpr (kFirst + 1 < static_cast<int>(Distance::kCount)) emit_loss<kFirst + 1>(y, centre_d);
  }

  // A store to memory that is not in the cache holds up all later ones. Always inlined: g++ drops calls of a function
  // that does nothing but prefetch.
  PSPL_INLINE void prefetch_outputs(int64_t y) const {
    for (int i = 0; i < 2 && y + i < tile_.bottom; ++i) {
      if (p_.gradient.data != nullptr)
        prefetch<1>(p_.gradient.data, offset(p_.gradient.strides, y + i), p_.gradient.strides.column, columns_,
                    size_of(p_.gradient.dtype));
      if (p_.map.data != nullptr)
        prefetch<1>(p_.map.data, offset(p_.map.strides, y + i), p_.map.strides.column, columns_, sizeof(T));
    }
  }

  bool map_wanted(Output map) const { return p_.map.data != nullptr && p_.output == map; }

  void similarity_of_row(const MomentsRow& m) const {
    const T twice_c1 = p_.twice_c1, twice_c2 = p_.twice_c2;
    V* const out = line(kSimilarity);
    for (int v = 0, vectors = vectors_; v < vectors; ++v)
      out[v] = similarity<Simd>(m.mean_s[v], m.mean_d[v], m.variance_s[v], m.variance_d[v], twice_c1, twice_c2);
  }

  void attention_of_row() const {
    const T inverse_delta = inverse_delta_, gamma = p_.gamma, mu = p_.mu;
    const V* const similarity = line(kSimilarity);
    V* const out = line(kAttention);
    for (int v = 0, vectors = vectors_; v < vectors; ++v)
      out[v] = attention<Simd>(similarity[v], inverse_delta, gamma, mu);
  }

  template <Distance kDistance>
  void loss_of_row(int64_t y, const V* centre_d) {
    const T eps_squared = p_.eps_squared;
    const V* const attention = line(kAttention);
    V* const loss = line(kLoss);
    const V* const inside = line(kInside);
    // Straight to the user's memory if the row is dense there, and whole vectors wide.
    const bool in_place = p_.gradient.data != nullptr && size_of(p_.gradient.dtype) == sizeof(T) &&
                          p_.gradient.strides.column == 1 && columns_ == vectors_ * kLanes;
    T* const gradient =
        in_place ? static_cast<T*>(p_.gradient.data) + offset(p_.gradient.strides, y) : scalars(kGradient);
    V sum(T(0));
    for (int v = 0, vectors = vectors_; v < vectors; ++v) {
      const PixelLoss<V> pixel = pixel_loss<Simd>(kDistance, attention[v], centre_d[v], eps_squared);
      pixel.gradient.store(gradient + v * kLanes);
      loss[v] = pixel.loss;
      sum = sum + only(inside[v], pixel.loss);
    }
    add(kLossSum, sum);
    if (p_.gradient.data == nullptr || in_place) return;
    const auto write_as = [&](auto* to) {
      write(static_cast<decltype(to)>(p_.gradient.data), p_.gradient.strides, y, line(kGradient));
    };
    if constexpr (sizeof(T) == 8) {
      write_as(static_cast<T*>(nullptr));
    } else {
      with_element(p_.gradient.dtype, write_as);
    }
  }

  void add_stats(const V* centre_d) {
    V sums[kNumSums] = {V(T(0)), V(T(0)), V(T(0)), V(T(0)), V(T(0))};
    for (int v = 0; v < vectors_; ++v) {
      const V inside = line(kInside)[v], d = centre_d[v];
      sums[kAbsErrorSum] = sums[kAbsErrorSum] + only(inside, Simd::absolute(d));
      sums[kSquaredErrorSum] = sums[kSquaredErrorSum] + only(inside, d * d);
      sums[kSimilaritySum] = sums[kSimilaritySum] + only(inside, line(kSimilarity)[v]);
      sums[kAttentionSum] = sums[kAttentionSum] + only(inside, line(kAttention)[v]);
    }
    for (int i = kAbsErrorSum; i < kNumSums; ++i) add(i, sums[i]);
  }

  // One row is summed in the compute type, rows in double.
  PSPL_INLINE void add(int which, V row) {
    alignas(64) T lanes[kLanes];
    row.store(lanes);
    for (int lane = 0; lane < kLanes; ++lane) sums_[which][lane] += lanes[lane];
  }

  // Of the tile's first element in row y.
  int64_t offset(const Strides& strides, int64_t y) const {
    return tile_.offset(strides) + y * strides.row + tile_.left * strides.column;
  }

  void write(const OutputImage<T>& image, int64_t y, const V* row) const { write(image.data, image.strides, y, row); }

  template <typename E>
  void write(E* data, const Strides& strides, int64_t y, const V* row) const {
    const T* from = reinterpret_cast<const T*>(row);
    E* to = data + offset(strides, y);
    const int64_t stride = strides.column;
    if (stride == 1) {
      for (int i = 0; i < columns_; ++i) to[i] = Narrow<E>::from(from[i]);
    } else {
      for (int i = 0; i < columns_; ++i) to[i * stride] = Narrow<E>::from(from[i]);
    }
  }

  const ForwardParams<T>& p_;
  const Tile tile_;
  const T inverse_delta_;
  const int radius_;
  const int columns_;
  const int vectors_;
  const bool shared_pivot_ = can_share_pivot(p_);
  const RowReader<T> reader_;
  const AlignedBuffer<RingRow> ring_;
  const AlignedBuffer<RingRow*> rows_;  // the rows of the ring, twice over: from any start they can be read in order
  const AlignedBuffer<V> lines_;
  MomentsRow moments_[2];
  double sums_[kNumSums][kLanes] = {};
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
  const auto& jobs = *static_cast<const ForwardJobs<T>*>(context);
  const int64_t end = jobs.tiling.first_tile(job + 1);
  for (int64_t index = jobs.tiling.first_tile(job); index < end; ++index) {
    const Tile tile = tile_of(jobs.params, jobs.tiling, index);
    TileKernel<T, kRadius>(jobs.params, jobs.inverse_delta, tile).run(jobs.sums + index * kNumSums);
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
