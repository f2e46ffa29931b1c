// The forward pass. A job is a tile: a strip of columns of a band of rows of one plane, processed from top to bottom.
// Each row of s and d is blurred horizontally into a ring of 2 radius + 2 rows; two output rows at a time are blurred
// vertically, sharing most of their loads, and weighted. The working set fits in the first-level cache.
#pragma once

#include <cstdint>

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

// Of a window of s or d.
template <typename V>
struct MeanVariance {
  V mean;
  V variance;
};

// The taps, broadcast. A negative kRadius means that the radius is known at run time only.
template <typename T, typename V, int kRadius>
struct Window {
  V tap[(kRadius >= 0 ? kRadius : kMaxRadius) + 1];
  int runtime_radius;

  PSPL_INLINE explicit Window(const ForwardParams<T>& p) : runtime_radius(p.radius) {
    for (int k = 0; k <= radius(); ++k) tap[k] = V(p.taps[k]);
  }
  PSPL_INLINE int radius() const { return kRadius >= 0 ? kRadius : runtime_radius; }
};

template <typename T, int kRadius>
class TileKernel {
  static constexpr int kLanes = PSPL_VECTOR_BYTES / sizeof(T);
  static_assert(kStripColumns<T> % kLanes == 0, "a strip is a whole number of vectors wide");
  using V = Vec<T, kLanes>;
  using Window = PSPL_ISA::Window<T, V, kRadius>;

  // One row of the ring, for one vector of columns.
  struct Cell {
    MeanVariance<V> s;  // over the window along the row
    MeanVariance<V> d;
    V centre_d;
  };

 public:
  TileKernel(const ForwardParams<T>& params, T inverse_delta, const Tile& tile)
      : p_(params),
        tile_(tile),
        inverse_delta_(inverse_delta),
        radius_(kRadius >= 0 ? kRadius : params.radius),
        columns_(tile.right - tile.left),
        vectors_(divide_up(columns_, kLanes)),
        reader_(params, tile, radius_),
        ring_((2 * radius_ + 2) * vectors_),
        rows_(2 * (2 * radius_ + 2)),
        lines_(kLines * line_vectors()) {
    for (int i = 0; i < 2 * (2 * radius_ + 2); ++i) rows_.get()[i] = ring_.get() + i % (2 * radius_ + 2) * vectors_;
    // Zeros: the padding beside the image, and a defined value in unused lanes.
    for (int i = 0; i < kSimilarity * line_vectors(); ++i) lines_.get()[i] = V(T(0));
    for (int i = 0; i < vectors_ * kLanes; ++i)
      scalars(kInside)[i] = bit_cast<T>(i < columns_ ? ~typename V::Bits(0) : typename V::Bits(0));
  }

  // Fills the outputs of the tile, and sums[kNumSums].
  void run(double* sums) {
    const int ring_rows = 2 * radius_ + 2;
    read_two_rows(tile_.top - radius_);
    for (int i = 0; i < 2 * radius_; i += 2) {
      blur_along_two_rows(rows_.get() + i);
      read_two_rows(tile_.top - radius_ + i + 2);
    }
    int start = 0;
    for (int64_t y = tile_.top; y < tile_.bottom; y += 2) {
      Cell* const* rows = rows_.get() + start;
      blur_along_two_rows(rows + 2 * radius_);
      if (y + 2 < tile_.bottom) read_two_rows(y + 2 + radius_);
      similarity_of_two_rows(rows);
      finish_row(y, rows[radius_], line(kSimilarity));
      if (y + 1 < tile_.bottom) finish_row(y + 1, rows[radius_ + 1], line(kSimilarity + 1));
      start = (start + 2) % ring_rows;
    }
    for (int i = 0; i < kNumSums; ++i) {
      sums[i] = 0;
      for (int lane = 0; lane < kLanes; ++lane) sums[i] += sums_[i][lane];
    }
  }

 private:
  // Lines of workspace, each as wide as a row with its halo on both sides.
  enum { kS, kD = kS + 2, kSimilarity = kD + 2, kAttention = kSimilarity + 2, kLoss, kGradient, kInside, kLines };

  int64_t line_vectors() const { return vectors_ + 2 * divide_up(radius_, kLanes); }
  V* line(int which) const { return lines_.get() + which * line_vectors() + divide_up(radius_, kLanes); }
  T* scalars(int which) const { return reinterpret_cast<T*>(line(which)); }

  // Called one step before the rows are used, because the blur's loads overlap two of the vectors stored here and would
  // wait for the stores.
  void read_two_rows(int64_t y) const {
    for (int i = 0; i < 2; ++i) reader_.read(y + i, scalars(kS + i), scalars(kD + i));
  }

  void blur_along_two_rows(Cell* const* rows) const {
    for (int i = 0; i < 2; ++i) blur_along_row(scalars(kS + i), scalars(kD + i), rows[i]);
  }

  void blur_along_row(const T* s, const T* d, Cell* cells) const {
    const Window window(p_);
    for (int v = 0, vectors = vectors_; v < vectors; ++v) {
      Cell& cell = cells[v];
      cell.s = blur_along(window, s + v * kLanes);
      cell.d = blur_along(window, d + v * kLanes);
      cell.centre_d = V::load(d + v * kLanes);
    }
  }

  // The centre pixel is subtracted from its neighbours before they are squared: rounding errors are then small compared
  // with the variance for any mean, and NaN and Inf stay within their windows. The taps are symmetric, so pixels at the
  // same distance are added first; additions run in parallel with multiplications.
  static PSPL_INLINE MeanVariance<V> blur_along(const Window& window, const T* at) {
    const int radius = window.radius();
    const V centre = V::load(at);
    V mean(T(0)), square(T(0));
#pragma GCC unroll 8
    for (int k = 1; k <= radius; ++k) {
      const V left = V::load(at - k) - centre;
      const V right = V::load(at + k) - centre;
      mean = multiply_add(left + right, window.tap[k], mean);
      square = multiply_add(multiply_add(left, left, right * right), window.tap[k], square);
    }
    return {centre + mean, multiply_add(-mean, mean, square)};
  }

  // The similarity of the rows at rows[radius] and rows[radius + 1]. The weighting is a separate loop, because both
  // are long chains of dependent operations, and short loop bodies let the processor work on several vectors at once.
  void similarity_of_two_rows(Cell* const* rows) const {
    const Window window(p_);
    const T twice_c1 = p_.twice_c1, twice_c2 = p_.twice_c2;
    V* upper = line(kSimilarity);
    V* lower = line(kSimilarity + 1);
    for (int v = 0, vectors = vectors_; v < vectors; ++v) {
      MeanVariance<V> s[2], d[2];
      blur_down(window, rows, v, &Cell::s, s);
      blur_down(window, rows, v, &Cell::d, d);
      upper[v] = similarity<Simd>(s[0].mean, d[0].mean, s[0].variance + twice_c2, d[0].variance, twice_c1, twice_c2);
      lower[v] = similarity<Simd>(s[1].mean, d[1].mean, s[1].variance + twice_c2, d[1].variance, twice_c1, twice_c2);
    }
  }

  // The variance of a window is the mean of the variances of its rows, plus the variance of their means. It is computed
  // from the mean of (mean^2 + variance), after the mean of the upper centre row is subtracted from all means. Half of
  // the rows at distance k from one centre are at distance k - 1 from the other one and already loaded.
  static PSPL_INLINE void blur_down(const Window& window, Cell* const* rows, int v, MeanVariance<V> Cell::* which,
                                    MeanVariance<V>* out) {
    const int radius = window.radius();
    if (radius == 0) {  // The two windows have no common row for a pivot: a NaN would spread to the other window.
      out[0] = rows[0][v].*which;
      out[1] = rows[1][v].*which;
      return;
    }
    struct Row {
      V mean;
      V square;
    };
    const V pivot = (rows[radius][v].*which).mean;
    const auto row_at = [&](int row) -> Row {
      const MeanVariance<V>& along = rows[row][v].*which;
      const V mean = along.mean - pivot;
      return {mean, multiply_add(mean, mean, along.variance)};
    };
    Row above = {V(T(0)), (rows[radius][v].*which).variance};
    Row below = row_at(radius + 1);
    Row upper = {V(T(0)), window.tap[0] * above.square};
    Row lower = {window.tap[0] * below.mean, window.tap[0] * below.square};
#pragma GCC unroll 8
    for (int k = 1; k <= radius; ++k) {
      const Row next_above = row_at(radius - k);
      const Row next_below = row_at(radius + 1 + k);
      upper.mean = multiply_add(next_above.mean + below.mean, window.tap[k], upper.mean);
      lower.mean = multiply_add(above.mean + next_below.mean, window.tap[k], lower.mean);
      upper.square = multiply_add(next_above.square + below.square, window.tap[k], upper.square);
      lower.square = multiply_add(above.square + next_below.square, window.tap[k], lower.square);
      above = next_above;
      below = next_below;
    }
    out[0] = {upper.mean + pivot, multiply_add(-upper.mean, upper.mean, upper.square)};
    out[1] = {lower.mean + pivot, multiply_add(-lower.mean, lower.mean, lower.square)};
  }

  // All outputs of a row, from its similarity.
  void finish_row(int64_t y, const Cell* cells, const V* similarity) {
    if (map_wanted(Output::kSimilarityMap)) write(p_.map, y, similarity);
    if (p_.loss == nullptr && p_.stats == nullptr && p_.gradient.data == nullptr &&
        (p_.map.data == nullptr || p_.output == Output::kSimilarityMap))
      return;
    switch (p_.distance) {
      case Distance::kL1:
        weight_row<Distance::kL1>(y, cells, similarity);
        break;
      case Distance::kL2:
        weight_row<Distance::kL2>(y, cells, similarity);
        break;
      case Distance::kCharbonnier:
        weight_row<Distance::kCharbonnier>(y, cells, similarity);
        break;
    }
    if (map_wanted(Output::kAttentionMap)) write(p_.map, y, line(kAttention));
    if (map_wanted(Output::kLossMap)) write(p_.map, y, line(kLoss));
    if (p_.stats != nullptr) add_stats(cells, similarity);
  }

  bool map_wanted(Output map) const { return p_.map.data != nullptr && p_.output == map; }

  template <Distance kDistance>
  void weight_row(int64_t y, const Cell* cells, const V* similarity) {
    const T inverse_delta = inverse_delta_, gamma = p_.gamma, mu = p_.mu, eps_squared = p_.eps_squared;
    const bool attention_wanted = p_.stats != nullptr || map_wanted(Output::kAttentionMap);
    const bool loss_wanted = map_wanted(Output::kLossMap);
    V* const attention_line = line(kAttention);
    V* const loss_line = line(kLoss);
    const V* const inside = line(kInside);
    // Directly into the user's memory if the row is dense there, and whole vectors wide.
    const bool in_place = p_.gradient.data != nullptr && size_of(p_.gradient.dtype) == sizeof(T) &&
                          p_.gradient.strides.column == 1 && columns_ == vectors_ * kLanes;
    T* const gradient =
        in_place ? static_cast<T*>(p_.gradient.data) + offset(p_.gradient.strides, y) : scalars(kGradient);
    V sum(T(0));
    for (int v = 0, vectors = vectors_; v < vectors; ++v) {
      const V m_a = attention<Simd>(similarity[v], inverse_delta, gamma, mu);
      const PixelLoss<V> w = pixel_loss<Simd>(kDistance, m_a, cells[v].centre_d, eps_squared);
      w.gradient.store(gradient + v * kLanes);
      if (attention_wanted) attention_line[v] = m_a;
      if (loss_wanted) loss_line[v] = w.loss;
      sum = sum + only(inside[v], w.loss);
    }
    add(kLossSum, sum);
    if (p_.gradient.data != nullptr && !in_place) {
      with_element(p_.gradient.dtype, [&](auto* type) {
        using E = std::remove_pointer_t<decltype(type)>;
        write(static_cast<E*>(p_.gradient.data), p_.gradient.strides, y, line(kGradient));
      });
    }
  }

  void add_stats(const Cell* cells, const V* similarity) {
    V sums[kNumSums] = {V(T(0)), V(T(0)), V(T(0)), V(T(0)), V(T(0))};
    for (int v = 0; v < vectors_; ++v) {
      const V inside = line(kInside)[v], d = cells[v].centre_d;
      sums[kAbsErrorSum] = sums[kAbsErrorSum] + only(inside, Simd::absolute(d));
      sums[kSquaredErrorSum] = sums[kSquaredErrorSum] + only(inside, d * d);
      sums[kSimilaritySum] = sums[kSimilaritySum] + only(inside, similarity[v]);
      sums[kAttentionSum] = sums[kAttentionSum] + only(inside, line(kAttention)[v]);
    }
    for (int i = kAbsErrorSum; i < kNumSums; ++i) add(i, sums[i]);
  }

  // A row is summed in the compute type, the rows in double.
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
  const RowReader<T> reader_;
  const AlignedBuffer<Cell> ring_;
  const AlignedBuffer<Cell*> rows_;  // the rows of the ring, twice, so that they can be read in order from any start
  const AlignedBuffer<V> lines_;
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
  const int64_t begin = job * jobs.tiling.tiles_of_a_job;
  const int64_t end = begin + jobs.tiling.tiles_of_a_job;
  for (int64_t index = begin; index < end && index < jobs.tiling.tiles; ++index) {
    const Tile tile = tile_of(jobs.params, jobs.tiling, index);
    TileKernel<T, kRadius>(jobs.params, jobs.inverse_delta, tile).run(jobs.sums + index * kNumSums);
  }
}

template <typename T>
auto forward_job_of(int radius) {
  switch (radius) {
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
  parallel_for(tiling.jobs(), forward_job_of<T>(params.radius), &jobs);

  double sums[kNumSums] = {};
  for (int64_t tile = 0; tile < tiling.tiles; ++tile)
    for (int i = 0; i < kNumSums; ++i) sums[i] += tile_sums.get()[tile * kNumSums + i];
  for (int i = 0; i < kNumSums; ++i) store_sum(params, i, sums[i]);
}

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
