// The fused forward kernel and the backward scaling, once for every instruction set: each kernel_*.cpp names one
// (PSPL_ISA, PSPL_VECTOR_BYTES), includes this file and is compiled with its flags. Everything lives in an anonymous
// namespace so that the linker never takes a function of one file for another's.
//
// A job is a tile: a strip of columns, over a band of rows, of one plane. It walks down its rows. A row of s and d
// (pspl_math.h) is blurred along the row into a ring of 2 radius + 2 rows; two output rows at a time are then blurred
// down the columns, sharing all but two of their loads, and go through the formulas while still in registers. All
// that is live stays in the first-level cache. Tiles depend on the image alone, never on the threads, and their
// sums are added in order: the result is the same, bit for bit, on any number of threads.
#include <cstdlib>
#include <initializer_list>
#include <new>
#include <type_traits>

#include "../pspl_math.h"
#include "kernels.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

#include "vec.h"

#include "elements.h"

constexpr int kSums = kNumStats + 1;  // the statistics, then the loss

constexpr int64_t kTileRows = 256;
constexpr int64_t kLeastTileRows = 32;
// Enough tiles for every core of a large machine; a smaller image is cut into shorter bands to get there.
constexpr int64_t kEnoughTiles = 64;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

template <typename T>
struct Geometry {
  static constexpr int kLanes = PSPL_VECTOR_BYTES / sizeof(T);
  static constexpr int kColumns = 384 / sizeof(T);  // of a tile: its ring is then 23 KiB for the 11 x 11 window
  static_assert(kColumns % kLanes == 0, "a tile is a whole number of vectors wide");

  int64_t strips;
  int64_t bands;
  int64_t band_rows;
  int64_t jobs;

  explicit Geometry(const Params<T>& p) {
    const int64_t planes = p.leading[0] * p.leading[1] * p.leading[2];
    strips = divide_up(p.width, kColumns);
    int64_t rows = divide_up(p.height, divide_up(kEnoughTiles, planes * strips));
    if (rows < kLeastTileRows) rows = kLeastTileRows;
    if (rows > kTileRows) rows = kTileRows;
    bands = divide_up(p.height, rows);
    band_rows = round_up(divide_up(p.height, bands), 2);  // rows are made in pairs
    bands = divide_up(p.height, band_rows);
    jobs = planes * strips * bands;
  }
};

// Rows [top, bottom) and columns [left, right) of one plane.
struct Tile {
  int64_t leading[kLeadingDims];
  int64_t top, bottom, left, right;

  int64_t offset(const Layout& stride) const {
    return leading[0] * stride.leading[0] + leading[1] * stride.leading[1] + leading[2] * stride.leading[2];
  }
};

// The channel runs fastest: of a channels_last image the tiles that share their memory then follow each other.
template <typename T>
Tile tile_of(const Params<T>& p, const Geometry<T>& g, int64_t job) {
  Tile tile;
  tile.leading[2] = job % p.leading[2];
  job /= p.leading[2];
  tile.left = job % g.strips * g.kColumns;
  job /= g.strips;
  tile.top = job % g.bands * g.band_rows;
  job /= g.bands;
  tile.leading[1] = job % p.leading[1];
  tile.leading[0] = job / p.leading[1];
  tile.right = tile.left + g.kColumns < p.width ? tile.left + g.kColumns : p.width;
  tile.bottom = tile.top + g.band_rows < p.height ? tile.top + g.band_rows : p.height;
  return tile;
}

// Aligned scratch memory of one tile.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : data_(static_cast<char*>(std::aligned_alloc(64, round_up(bytes, 64)))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Workspace() { std::free(data_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  template <typename E>
  E* take(int64_t count) {
    E* taken = reinterpret_cast<E*>(data_ + used_);
    used_ += round_up(count * sizeof(E), 64);
    return taken;
  }

 private:
  char* data_;
  int64_t used_ = 0;
};

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// count pixels of a row from index on, in the compute type: the user's memory itself where it is so already.
template <typename T>
const T* load_row(const Input& input, int64_t index, int count, T* scratch) {
  const int64_t stride = input.stride.column;
  return with_element(input.dtype, [&](auto* type) -> const T* {
    using E = std::remove_pointer_t<decltype(type)>;
    const E* from = static_cast<const E*>(input.data) + index;
    if (stride == 1) {
      if constexpr (std::is_same_v<E, T>) return from;
      for (int i = 0; i < count; ++i) scratch[i] = T(widen(from[i]));
    } else {
      for (int i = 0; i < count; ++i) scratch[i] = T(widen(from[i * stride]));
    }
    return scratch;
  });
}

// Gaussian blur of one vector of columns. kRadius < 0 stands for any radius.
template <typename T, int kRadius>
class TileKernel {
  static constexpr int kLanes = Geometry<T>::kLanes;
  static constexpr int kVectors = Geometry<T>::kColumns / kLanes;
  using V = Vec<T, kLanes>;

  // Of s or d, over a window.
  struct Spread {
    V mean;
    V variance;
  };

  // What the ring holds of one vector of columns: s and d blurred along the row, and d itself.
  struct Cell {
    Spread sum;
    Spread difference;
    V centre_difference;
  };

 public:
  TileKernel(const Params<T>& params, T inverse_width, const Tile& tile)
      : p_(params),
        tile_(tile),
        inverse_width_(inverse_width),
        radius_(kRadius >= 0 ? kRadius : params.radius),
        halo_(round_up(radius_, kLanes)),
        columns_(tile.right - tile.left),
        vectors_(divide_up(columns_, kLanes)),
        first_(tile.left > radius_ ? -radius_ : -tile.left),
        last_(params.width - tile.right > radius_ ? columns_ + radius_ : params.width - tile.left),
        sr_base_(tile.offset(params.sr.stride) + (tile.left + first_) * params.sr.stride.column),
        hr_base_(tile.offset(params.hr.stride) + (tile.left + first_) * params.hr.stride.column),
        workspace_(workspace_bytes()) {
    const int64_t line = halo_ + vectors_ * kLanes + halo_;
    for (int i = 0; i < 2; ++i) {
      sum_row_[i] = workspace_.template take<T>(line) + halo_;
      difference_row_[i] = workspace_.template take<T>(line) + halo_;
    }
    sr_scratch_ = workspace_.template take<T>(line);
    hr_scratch_ = workspace_.template take<T>(line);
    for (V** scratch : {&similarity_[0], &similarity_[1], &attention_, &residual_, &loss_, &inside_})
      *scratch = workspace_.template take<V>(vectors_);
    T* inside = reinterpret_cast<T*>(inside_);
    for (int i = 0; i < vectors_ * kLanes; ++i) inside[i] = bit_cast<T>(typename V::Bits(i < columns_ ? -1 : 0));
    // Each row of the ring stands in the table twice, so that ring_rows + 2 rows in order can be read from any start.
    const int ring_rows = 2 * radius_ + 2;
    rows_ = workspace_.template take<Cell*>(2 * ring_rows);
    source_ = workspace_.template take<int>(2 * radius_ + 1);
    Cell* ring = workspace_.template take<Cell>(ring_rows * vectors_);
    for (int i = 0; i < 2 * ring_rows; ++i) rows_[i] = ring + (i % ring_rows) * vectors_;

    outside_left_ = outside_right_ = 0;
    if (p_.padding != Padding::kZeros) {
      outside_left_ = radius_ + first_;
      outside_right_ = columns_ + radius_ - last_;
      for (int i = 0; i < outside_left_; ++i)
        source_[i] = padded_index(tile.left - radius_ + i, p_.width, p_.padding) - (tile.left + first_);
      for (int i = 0; i < outside_right_; ++i)
        source_[outside_left_ + i] =
            padded_index(tile.left + last_ + i, p_.width, p_.padding) - (tile.left + first_);
    }
    for (int row = 0; row < 2; ++row) {
      for (int64_t i = -halo_; i < line - halo_; ++i) {
        sum_row_[row][i] = T(0);
        difference_row_[row][i] = T(0);
      }
    }
  }

  // Fills the outputs of the tile and sums[kSums].
  void run(double* sums) {
    const int ring_rows = 2 * radius_ + 2;
    load_two_rows(tile_.top - radius_);
    for (int i = 0; i < 2 * radius_; i += 2) {
      blur_along_two_rows(rows_ + i);
      load_two_rows(tile_.top - radius_ + i + 2);
    }
    int start = 0;
    for (int64_t y = tile_.top; y < tile_.bottom; y += 2) {
      Cell* const* rows = rows_ + start;
      blur_along_two_rows(rows + 2 * radius_);
      load_two_rows(y + radius_ + 2);
      finish_two_rows(y, rows);
      start = (start + 2) % ring_rows;
    }
    for (int i = 0; i < kSums; ++i) {
      sums[i] = 0;
      for (int lane = 0; lane < kLanes; ++lane) sums[i] += lane_sums_[i][lane];
    }
  }

 private:
  size_t workspace_bytes() const {
    const int64_t line = (2 * halo_ + vectors_ * kLanes) * sizeof(T) + 64;
    const int64_t ring_rows = 2 * radius_ + 2;
    return 12 * line + 2 * ring_rows * sizeof(Cell*) + 64 + (2 * radius_ + 1) * sizeof(int) + 64 +
           ring_rows * vectors_ * sizeof(Cell);
  }

  // The rows of a tile lie too far apart, and are too short, for the processor to guess the next one.
  static constexpr int kRowsAhead = 8;

  template <int kWrite>
  static PSPL_INLINE void prefetch(const void* data, int64_t index, int64_t stride, int count, int64_t size) {
    constexpr int64_t kLine = 64;
    const char* from = static_cast<const char*>(data) + index * size;
    const int64_t bytes = count * stride * size;
    for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(from + i, kWrite);
  }

  // s and d of row y, of the columns that the tile can see. Columns beyond those hold the constants of the zero
  // padding from the start; they only feed lanes that nobody reads.
  void load_sum_and_difference(int64_t y, int line) const {
    const int count = last_ - first_;
    T* sum = sum_row_[line] + first_;
    T* difference = difference_row_[line] + first_;
    y = padded_index(y, p_.height, p_.padding);
    if (y < 0) {
      for (int i = 0; i < count; ++i) {
        sum[i] = T(0);
        difference[i] = T(0);
      }
      return;
    }
    const int64_t ahead = y + kRowsAhead < p_.height ? y + kRowsAhead : p_.height - 1;
    prefetch<0>(p_.sr.data, sr_base_ + ahead * p_.sr.stride.row, p_.sr.stride.column, count, size_of(p_.sr.dtype));
    prefetch<0>(p_.hr.data, hr_base_ + ahead * p_.hr.stride.row, p_.hr.stride.column, count, size_of(p_.hr.dtype));
    if (p_.residual.data != nullptr)
      prefetch<1>(p_.residual.data, tile_.offset(p_.residual.stride) + y * p_.residual.stride.row + tile_.left * p_.residual.stride.column, p_.residual.stride.column, columns_, sizeof(T));
    const T* sr = load_row(p_.sr, sr_base_ + y * p_.sr.stride.row, count, sr_scratch_);
    const T* hr = load_row(p_.hr, hr_base_ + y * p_.hr.stride.row, count, hr_scratch_);
    const auto combine = [&](int i) {
      const V a = V::load(sr + i), b = V::load(hr + i);
      (a + b).store(sum + i);
      (a - b).store(difference + i);
    };
    if (count >= kLanes) {
      // Vectors that are aligned in the lines of scratch, and at either end one that overlaps its neighbour: nothing is read
      // beyond the user's row.
      combine(0);
      for (int i = -first_ % kLanes; i < count - kLanes; i += kLanes) combine(i);
      combine(count - kLanes);
    } else {
      for (int i = 0; i < count; ++i) {
        sum[i] = sr[i] + hr[i];
        difference[i] = sr[i] - hr[i];
      }
    }
    for (int i = 0; i < outside_left_; ++i) {
      sum[i - radius_ - first_] = sum[source_[i]];
      difference[i - radius_ - first_] = difference[source_[i]];
    }
    for (int i = 0; i < outside_right_; ++i) {
      sum[count + i] = sum[source_[outside_left_ + i]];
      difference[count + i] = difference[source_[outside_left_ + i]];
    }
  }

  // Loaded a step ahead of their use: a load that straddles two stores still under way would wait for them.
  void load_two_rows(int64_t y) const {
    load_sum_and_difference(y, 0);
    load_sum_and_difference(y + 1, 1);
  }

  void blur_along_two_rows(Cell* const* rows) const {
    blur_along_row(0, rows[0]);
    blur_along_row(1, rows[1]);
  }

  // Broadcast once per row: the compiler cannot know that the taps outlive a store.
  struct Window {
    V tap[(kRadius >= 0 ? kRadius : kMaxRadius) + 1];
    int runtime_radius;

    PSPL_INLINE Window(const T* taps, int radius) : runtime_radius(radius) {
      for (int k = 0; k <= this->radius(); ++k) tap[k] = V(taps[k]);
    }
    PSPL_INLINE int radius() const { return kRadius >= 0 ? kRadius : runtime_radius; }
  };

  // Along the row. The pixel at the centre is taken off its neighbours before they are squared: rounding is then small
  // beside the variance, whatever the mean, and NaN and Inf stay within their windows. The taps are symmetric: pixels at the
  // same distance are added first, by the adders, which run beside the multipliers.
  static PSPL_INLINE Spread blur_along(const Window& window, const T* at) {
    const int radius = window.radius();
    const V centre = V::load(at).held();
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

  void blur_along_row(int line, Cell* cells) const {
    const Window window(p_.taps, radius_);
    const T* sum = sum_row_[line];
    const T* difference = difference_row_[line];
    const int vectors = vectors_;
    for (int v = 0; v < vectors; ++v) {
      Cell& cell = cells[v];
      cell.sum = blur_along(window, sum + v * kLanes);
      cell.difference = blur_along(window, difference + v * kLanes);
      cell.centre_difference = V::load(difference + v * kLanes);
    }
  }

  // Down the columns, for the rows at rows[radius] and the next. The variance of the window is the mean of the variances of
  // its rows plus the variance of their means; the mean of the upper row is taken off all means. Of the rows at distance k
  // from the two, half were those at distance k - 1 from the other one.
  static PSPL_INLINE void blur_down(const Window& window, Cell* const* rows, int v, Spread Cell::*which, Spread* upper,
                                    Spread* lower) {
    const int radius = window.radius();
    const V centre = (rows[radius][v].*which).mean;
    const auto mean_and_square = [&](int row) -> Spread {
      const Spread& s = rows[row][v].*which;
      const V mean = (s.mean - centre).held();
      return {mean, multiply_add(mean, mean, s.variance).held()};
    };
    Spread above = {V(T(0)), (rows[radius][v].*which).variance};
    Spread below = mean_and_square(radius + 1);
    V upper_mean(T(0));
    V upper_square = window.tap[0] * above.variance;
    V lower_mean = window.tap[0] * below.mean;
    V lower_square = window.tap[0] * below.variance;
#pragma GCC unroll 8
    for (int k = 1; k <= radius; ++k) {
      const Spread next_above = mean_and_square(radius - k);
      const Spread next_below = mean_and_square(radius + 1 + k);
      upper_mean = multiply_add(next_above.mean + below.mean, window.tap[k], upper_mean);
      lower_mean = multiply_add(above.mean + next_below.mean, window.tap[k], lower_mean);
      upper_square = multiply_add(next_above.variance + below.variance, window.tap[k], upper_square);
      lower_square = multiply_add(above.variance + next_below.variance, window.tap[k], lower_square);
      above = next_above;
      below = next_below;
    }
    *upper = {upper_mean + centre, multiply_add(-upper_mean, upper_mean, upper_square)};
    *lower = {lower_mean + centre, multiply_add(-lower_mean, lower_mean, lower_square)};
    // The row above is no part of a window of one pixel, which has no variance.
    if (radius == 0) *lower = rows[1][v].*which;
  }

  // Down the columns: the moments of rows y and y + 1, and what becomes of them.
  void finish_two_rows(int64_t y, Cell* const* rows) {
    blur_two_rows(rows);
    for (int i = 0; i < 2 && y + i < tile_.bottom; ++i) {
      const V* similarity = similarity_[i];
      if (p_.map.data != nullptr && p_.map_kind == MapKind::kSimilarity)
        put(p_.map, y + i, reinterpret_cast<const T*>(similarity));
      if (weights_wanted_) weigh_row(y + i, rows[radius_ + i], similarity);
    }
  }

  // The formulas are split in two loops because each is one long chain of dependent operations: short bodies let the
  // processor work on several vectors at a time.
  void blur_two_rows(Cell* const* rows) {
    const Window window(p_.taps, radius_);
    const T twice_c1 = p_.twice_c1, twice_c2 = p_.twice_c2;
    V* first = similarity_[0];
    V* second = similarity_[1];
    const int vectors = vectors_;
    for (int v = 0; v < vectors; ++v) {
      Spread sum[2], difference[2];
      blur_down(window, rows, v, &Cell::sum, &sum[0], &sum[1]);
      blur_down(window, rows, v, &Cell::difference, &difference[0], &difference[1]);
      first[v] = similarity(sum[0].mean, difference[0].mean, sum[0].variance, difference[0].variance, twice_c1, twice_c2);
      second[v] = similarity(sum[1].mean, difference[1].mean, sum[1].variance, difference[1].variance, twice_c1, twice_c2);
    }
  }

  void weigh_row(int64_t y, const Cell* cells, const V* similarity) {
    switch (p_.distance) {
      case Distance::kL1: return weigh_row<Distance::kL1>(y, cells, similarity);
      case Distance::kL2: return weigh_row<Distance::kL2>(y, cells, similarity);
      case Distance::kCharbonnier: return weigh_row<Distance::kCharbonnier>(y, cells, similarity);
    }
  }

  template <Distance kDistance>
  void weigh_row(int64_t y, const Cell* cells, const V* similarity) {
    const T inverse_width = inverse_width_, gamma = p_.gamma, mu = p_.mu, eps_squared = p_.eps_squared;
    const int vectors = vectors_;
    const bool attention_wanted = p_.stats != nullptr || (p_.map.data != nullptr && p_.map_kind == MapKind::kAttention);
    const bool loss_wanted = p_.map.data != nullptr && p_.map_kind == MapKind::kLoss;
    const Line residual = line_of(p_.residual, y);
    T* const residual_to = residual.data;
    V sum(T(0));
    for (int v = 0; v < vectors; ++v) {
      const V m_a = attention(similarity[v], inverse_width, gamma, mu);
      const Weighted<V> w = weighted(kDistance, m_a, cells[v].centre_difference, eps_squared);
      w.residual.store(residual_to + v * kLanes);
      if (attention_wanted) attention_[v] = m_a;
      if (loss_wanted) loss_[v] = w.loss;
      sum = sum + only(inside_[v], w.loss);
    }
    add_to(kNumStats, sum);
    if (!residual.in_place) put(p_.residual, y, residual_to);
    if (loss_wanted) put(p_.map, y, reinterpret_cast<const T*>(loss_));
    if (p_.map.data != nullptr && p_.map_kind == MapKind::kAttention)
      put(p_.map, y, reinterpret_cast<const T*>(attention_));
    if (p_.stats != nullptr) add_stats(cells, similarity);
  }

  // Where a row is made: in the user's memory if it is dense there, and a whole number of vectors.
  struct Line {
    T* data;
    bool in_place;
  };

  Line line_of(const Output<T>& output, int64_t y) const {
    if (output.data != nullptr && output.stride.column == 1 && columns_ == vectors_ * kLanes)
      return {output.data + tile_.offset(output.stride) + y * output.stride.row + tile_.left, true};
    return {reinterpret_cast<T*>(residual_), false};
  }

  void add_stats(const Cell* cells, const V* similarity) {
    V sums[kNumStats] = {V(T(0)), V(T(0)), V(T(0)), V(T(0))};
    for (int v = 0; v < vectors_; ++v) {
      const V d = cells[v].centre_difference;
      sums[kAbsError] = sums[kAbsError] + only(inside_[v], absolute(d));
      sums[kSquaredError] = sums[kSquaredError] + only(inside_[v], d * d);
      sums[kSimilarityStat] = sums[kSimilarityStat] + only(inside_[v], similarity[v]);
      sums[kAttentionStat] = sums[kAttentionStat] + only(inside_[v], attention_[v]);
    }
    for (int i = 0; i < kNumStats; ++i) add_to(i, sums[i]);
  }

  // A row in the compute type, then double: short sums lose nothing.
  void add_to(int sum, V row) {
    alignas(64) T lanes[kLanes];
    row.store(lanes);
    for (int lane = 0; lane < kLanes; ++lane) lane_sums_[sum][lane] += lanes[lane];
  }

  void put(const Output<T>& output, int64_t y, const T* line) const {
    if (output.data == nullptr) return;
    const int64_t stride = output.stride.column;
    T* to = output.data + tile_.offset(output.stride) + y * output.stride.row + tile_.left * stride;
    if (stride == 1) {
      __builtin_memcpy(to, line, columns_ * sizeof(T));
    } else {
      for (int i = 0; i < columns_; ++i) to[i * stride] = line[i];
    }
  }

  const Params<T>& p_;
  const Tile tile_;
  const T inverse_width_;
  const int radius_;
  const int halo_;     // radius in whole vectors
  const int columns_;  // counted from tile.left, as are all columns from here on
  const int vectors_;
  const int first_;    // columns [first_, last_) are inside the image and within the radius of the tile
  const int last_;
  const int64_t sr_base_;  // element index of row 0, column first_
  const int64_t hr_base_;
  Workspace workspace_;
  T* sum_row_[2];
  T* difference_row_[2];
  T* sr_scratch_;
  T* hr_scratch_;
  V* similarity_[2];   // of the two rows in hand
  V* attention_;
  V* residual_;
  V* loss_;
  V* inside_;          // a mask: the lanes that are columns of the tile
  Cell** rows_;
  int* source_;        // columns whose values stand outside the image
  int outside_left_;
  int outside_right_;
  const bool weights_wanted_ = p_.loss != nullptr || p_.stats != nullptr || p_.residual.data != nullptr ||
                               (p_.map.data != nullptr && p_.map_kind != MapKind::kSimilarity);
  double lane_sums_[kSums][kLanes] = {};
};

template <typename T>
T step_of(const Params<T>& p) {
  if (p.step_tensor == nullptr) return p.step;
  return p.step_dtype == DType::kFloat64 ? T(*static_cast<const double*>(p.step_tensor))
                                         : T(*static_cast<const float*>(p.step_tensor));
}

template <typename T>
struct ForwardJobs {
  const Params<T>& params;
  const Geometry<T> geometry;
  const T inverse_width;
  double* sums;  // [jobs][kSums]
};

template <typename T, int kRadius>
void forward_job(void* context, int64_t job) {
  const auto& jobs = *static_cast<const ForwardJobs<T>*>(context);
  const Tile tile = tile_of(jobs.params, jobs.geometry, job);
  TileKernel<T, kRadius>(jobs.params, jobs.inverse_width, tile).run(jobs.sums + job * kSums);
}

template <typename T>
void forward(const Params<T>& params, ParallelFor parallel_for) {
  const Geometry<T> geometry(params);
  Workspace workspace(geometry.jobs * kSums * sizeof(double));
  const T delta = width(params.alpha, step_of(params), params.beta);
  ForwardJobs<T> jobs{params, geometry, inverse_width(delta), workspace.take<double>(geometry.jobs * kSums)};

  auto* job = &forward_job<T, -1>;
  switch (params.radius) {
    case 1: job = &forward_job<T, 1>; break;
    case 2: job = &forward_job<T, 2>; break;
    case 3: job = &forward_job<T, 3>; break;
    case 4: job = &forward_job<T, 4>; break;
    case 5: job = &forward_job<T, 5>; break;
    default: break;
  }
  parallel_for(geometry.jobs, job, &jobs);

  double sums[kSums] = {};
  for (int64_t tile = 0; tile < geometry.jobs; ++tile)
    for (int i = 0; i < kSums; ++i) sums[i] += jobs.sums[tile * kSums + i];
  if (params.loss != nullptr) *params.loss = T(params.loss_scale * sums[kNumStats]);
  if (params.stats != nullptr)
    for (int i = 0; i < kNumStats; ++i) params.stats[i] = T(params.stats_scale * sums[i]);
}

constexpr int64_t kScaleChunk = 1 << 16;

template <typename T>
struct ScaleJobs {
  const ScaleParams<T>& params;
  const T factor;
};

template <typename T>
void scale_job(void* context, int64_t job) {
  const auto& jobs = *static_cast<const ScaleJobs<T>*>(context);
  const ScaleParams<T>& p = jobs.params;
  const T factor = jobs.factor;
  const int64_t begin = job * kScaleChunk;
  const int64_t count = p.numel - begin < kScaleChunk ? p.numel - begin : kScaleChunk;
  const T* from = p.residual + begin;
  with_element(p.dtype, [&](auto* type) {
    using E = std::remove_pointer_t<decltype(type)>;
    E* to = static_cast<E*>(p.gradient) + begin;
    for (int64_t i = 0; i < count; ++i) to[i] = Narrow<E>::from(from[i] * factor);
  });
}

template <typename T>
void scale(const ScaleParams<T>& params, ParallelFor parallel_for) {
  ScaleJobs<T> jobs{params, T(double(*params.upstream) * params.factor)};
  parallel_for(divide_up(params.numel, kScaleChunk), &scale_job<T>, &jobs);
}

}  // namespace

const Kernels kernels = {&forward<float>, &forward<double>, &scale<float>, &scale<double>};

}  // namespace pspl::cpu::PSPL_ISA
