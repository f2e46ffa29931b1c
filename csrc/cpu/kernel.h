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
#include <new>
#include <type_traits>

#include "../pspl_math.h"
#include "kernels.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

#include "vec.h"

#include "elements.h"

constexpr int kSums = kNumStats + 1;  // the loss, then the statistics

constexpr int64_t kTileRows = 256;
constexpr int64_t kLeastTileRows = 32;
// Enough tiles for every core of a large machine; a smaller image is cut into shorter bands to get there.
constexpr int64_t kEnoughTiles = 64;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

template <typename T>
struct Geometry {
  static constexpr int kLanes = PSPL_VECTOR_BYTES / sizeof(T);
  static constexpr int kColumns = 256 / sizeof(T);  // of a tile: its ring is then 15 KiB for the 11 x 11 window
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

template <typename T>
T load_element(const Input& input, int64_t index) {
  return with_element(input.dtype, [&](auto* type) {
    using E = std::remove_pointer_t<decltype(type)>;
    return T(widen(static_cast<const E*>(input.data)[index]));
  });
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

  // What the ring holds of one vector: the four moments blurred along the row, and d itself.
  struct Cell {
    Moments<V> moments;
    V difference;
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
    sum_row_ = workspace_.template take<T>(line) + halo_;
    difference_row_ = workspace_.template take<T>(line) + halo_;
    sr_scratch_ = workspace_.template take<T>(line);
    hr_scratch_ = workspace_.template take<T>(line);
    for (T*& scratch : output_scratch_) scratch = workspace_.template take<T>(line);
    inside_ = workspace_.template take<T>(line);
    for (int i = 0; i < vectors_ * kLanes; ++i) inside_[i] = bit_cast<T>(typename V::Bits(i < columns_ ? -1 : 0));
    // Each row of the ring stands in the table twice, so that ring_rows + 2 rows in order can be read from any start.
    const int ring_rows = 2 * radius_ + 2;
    rows_ = workspace_.template take<Cell*>(2 * ring_rows);
    source_ = workspace_.template take<int>(2 * radius_ + 1);
    Cell* ring = workspace_.template take<Cell>(ring_rows * vectors_);
    for (int i = 0; i < 2 * ring_rows; ++i) rows_[i] = ring + (i % ring_rows) * vectors_;

    pivot_ = choose_pivot();
    for (int64_t i = -halo_; i < line - halo_; ++i) {
      sum_row_[i] = -pivot_;
      difference_row_[i] = T(0);
    }
    outside_left_ = radius_ + first_;
    outside_right_ = columns_ + radius_ - last_;
    if (p_.padding == Padding::kZeros) outside_left_ = outside_right_ = 0;
    for (int i = 0; i < outside_left_; ++i)
      source_[i] = padded_index(tile.left - radius_ + i, p_.width, p_.padding) - tile.left;
    for (int i = 0; i < outside_right_; ++i)
      source_[outside_left_ + i] = padded_index(tile.left + last_ + i, p_.width, p_.padding) - tile.left;
  }

  // Fills the outputs of the tile and sums[kSums].
  void run(double* sums) {
    const int ring_rows = 2 * radius_ + 2;
    for (int i = 0; i < 2 * radius_; ++i) blur_along_row(tile_.top - radius_ + i, rows_[i]);
    int start = 0;
    for (int64_t y = tile_.top; y < tile_.bottom; y += 2) {
      Cell* const* rows = rows_ + start;
      blur_along_row(y + radius_, rows[2 * radius_]);
      blur_along_row(y + radius_ + 1, rows[2 * radius_ + 1]);
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
    return 9 * line + 2 * ring_rows * sizeof(Cell*) + 64 + (2 * radius_ + 1) * sizeof(int) + 64 +
           ring_rows * vectors_ * sizeof(Cell);
  }

  // The mean of x + y over a grid of pixels of the tile. Pixels that are not finite stay out of it: a single NaN must
  // not reach beyond its own window.
  T choose_pivot() const {
    constexpr int kGrid = 8;
    const int64_t height = tile_.bottom - tile_.top;
    T sum = 0;
    int count = 0;
    for (int i = 0; i < kGrid; ++i) {
      const int64_t y = tile_.top + (2 * i + 1) * height / (2 * kGrid);
      for (int j = 0; j < kGrid; ++j) {
        const int64_t x = (2 * j + 1) * columns_ / (2 * kGrid) - first_;
        const T value = load_element<T>(p_.sr, sr_base_ + y * p_.sr.stride.row + x * p_.sr.stride.column) +
                        load_element<T>(p_.hr, hr_base_ + y * p_.hr.stride.row + x * p_.hr.stride.column);
        const bool finite = value - value == T(0);
        sum += finite ? value : T(0);
        count += finite;
      }
    }
    const T mean = count > 0 ? sum / T(count) : T(0);
    return mean - mean == T(0) ? mean : T(0);
  }

  // s and d of row y, of the columns that the tile can see. Columns beyond those hold the constants of the zero
  // padding from the start; they only feed lanes that nobody reads.
  void load_sum_and_difference(int64_t y) {
    const int count = last_ - first_;
    T* sum = sum_row_ + first_;
    T* difference = difference_row_ + first_;
    y = padded_index(y, p_.height, p_.padding);
    if (y < 0) {
      for (int i = 0; i < count; ++i) {
        sum[i] = -pivot_;
        difference[i] = T(0);
      }
      return;
    }
    const T* sr = load_row(p_.sr, sr_base_ + y * p_.sr.stride.row, count, sr_scratch_);
    const T* hr = load_row(p_.hr, hr_base_ + y * p_.hr.stride.row, count, hr_scratch_);
    const auto combine = [&](int i) {
      const V a = V::load(sr + i), b = V::load(hr + i);
      (a + b - pivot_).store(sum + i);
      (a - b).store(difference + i);
    };
    if (count >= kLanes) {
      for (int i = 0; i < count - kLanes; i += kLanes) combine(i);
      combine(count - kLanes);  // overlaps the one before: nothing is read beyond the user's row
    } else {
      for (int i = 0; i < count; ++i) {
        sum[i] = sr[i] + hr[i] - pivot_;
        difference[i] = sr[i] - hr[i];
      }
    }
    for (int i = 0; i < outside_left_; ++i) {
      sum_row_[i - radius_] = sum_row_[source_[i]];
      difference_row_[i - radius_] = difference_row_[source_[i]];
    }
    for (int i = 0; i < outside_right_; ++i) {
      sum_row_[last_ + i] = sum_row_[source_[outside_left_ + i]];
      difference_row_[last_ + i] = difference_row_[source_[outside_left_ + i]];
    }
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

  // The taps are symmetric: pixels at the same distance are added first, by the adders that run beside the multipliers.
  static PSPL_INLINE void blur_values_and_squares(const Window& window, const T* centre, V* mean, V* square) {
    const int radius = window.radius();
    const V c = V::load(centre);
    V m = window.tap[0] * c;
    V q = window.tap[0] * (c * c);
#pragma GCC unroll 8
    for (int k = 1; k <= radius; ++k) {
      const V a = V::load(centre - k), b = V::load(centre + k);
      m = multiply_add(a + b, window.tap[k], m);
      q = multiply_add(multiply_add(a, a, b * b), window.tap[k], q);
    }
    *mean = m;
    *square = q;
  }

  void blur_along_row(int64_t y, Cell* cells) {
    load_sum_and_difference(y);
    const Window window(p_.taps, radius_);
    const T* sum = sum_row_;
    const T* difference = difference_row_;
    const int vectors = vectors_;
    for (int v = 0; v < vectors; ++v) {
      Cell cell;
      blur_values_and_squares(window, sum + v * kLanes, &cell.moments.mean_sum, &cell.moments.square_sum);
      blur_values_and_squares(window, difference + v * kLanes, &cell.moments.mean_diff, &cell.moments.square_diff);
      cell.difference = V::load(difference + v * kLanes);
      cells[v] = cell;
    }
  }

  // Down the columns, for the rows at rows[radius] and the next.
  static PSPL_INLINE void blur_down_columns(const Window& window, Cell* const* rows, int v, V Moments<V>::*moment,
                                            Moments<V>* first, Moments<V>* second) {
    const int radius = window.radius();
    const auto at = [&](int row) { return rows[row][v].moments.*moment; };
    V a = window.tap[0] * at(radius);
    V b = window.tap[0] * at(radius + 1);
#pragma GCC unroll 8
    for (int k = 1; k <= radius; ++k) {
      a = multiply_add(at(radius - k) + at(radius + k), window.tap[k], a);
      b = multiply_add(at(radius + 1 - k) + at(radius + 1 + k), window.tap[k], b);
    }
    first->*moment = a;
    second->*moment = b;
  }

  // Where a row of an output is made: in place if it is dense and whole vectors wide, else in a line of scratch.
  struct Line {
    T* scratch;
    T* out;
    int64_t stride;
    bool in_place;
    T* data;
  };

  Line line_of(const Output<T>& output, T* scratch, int64_t y) const {
    if (output.data == nullptr) return {nullptr, nullptr, 0, false, nullptr};
    T* out = output.data + tile_.offset(output.stride) + y * output.stride.row + tile_.left * output.stride.column;
    const bool in_place = output.stride.column == 1 && columns_ == vectors_ * kLanes;
    return {scratch, out, output.stride.column, in_place, in_place ? out : scratch};
  }

  void put(const Line& line) const {
    if (line.data == nullptr || line.in_place) return;
    for (int i = 0; i < columns_; ++i) line.out[i * line.stride] = line.scratch[i];
  }

  struct Constants {
    T pivot, twice_c1, twice_c2, inverse_width, gamma, mu, eps_squared;
    Distance distance;
    MapKind map_kind;
    bool weights_wanted, stats_wanted;
  };

  void finish_two_rows(int64_t y, Cell* const* rows) {
    const Window window(p_.taps, radius_);
    const int radius = window.radius();
    const Constants c = {pivot_,   p_.twice_c1,    p_.twice_c2, inverse_width_, p_.gamma,
                         p_.mu,    p_.eps_squared, p_.distance, p_.map_kind,    weights_wanted_,
                         p_.stats != nullptr};
    const int rows_wanted = y + 1 < tile_.bottom ? 2 : 1;
    Line residual[2], map[2];
    for (int i = 0; i < rows_wanted; ++i) {
      residual[i] = line_of(p_.residual, output_scratch_[i], y + i);
      map[i] = line_of(p_.map, output_scratch_[2 + i], y + i);
    }
    V sums[kSums] = {V(T(0)), V(T(0)), V(T(0)), V(T(0)), V(T(0))};
    const int vectors = vectors_;
    for (int v = 0; v < vectors; ++v) {
      Moments<V> first, second;
      blur_down_columns(window, rows, v, &Moments<V>::mean_sum, &first, &second);
      blur_down_columns(window, rows, v, &Moments<V>::mean_diff, &first, &second);
      blur_down_columns(window, rows, v, &Moments<V>::square_sum, &first, &second);
      blur_down_columns(window, rows, v, &Moments<V>::square_diff, &first, &second);
      const V inside = V::load(inside_ + v * kLanes);
      finish(c, first, rows[radius][v].difference, inside, residual[0].data, map[0].data, v, sums);
      if (rows_wanted == 2)
        finish(c, second, rows[radius + 1][v].difference, inside, residual[1].data, map[1].data, v, sums);
    }
    for (int i = 0; i < rows_wanted; ++i) {
      put(residual[i]);
      put(map[i]);
    }
    // Two rows in the compute type, then double: short sums lose nothing.
    const int wanted = c.stats_wanted ? kSums : 1;
    for (int i = 0; i < wanted; ++i) {
      alignas(64) T lanes[kLanes];
      sums[i].store(lanes);
      for (int lane = 0; lane < kLanes; ++lane) lane_sums_[i][lane] += lanes[lane];
    }
  }

  // From the moments of one vector of pixels to its outputs.
  static PSPL_INLINE void finish(const Constants& c, const Moments<V>& moments, V difference, V inside, T* residual,
                                 T* map, int v, V* sums) {
    const V m_s = similarity(moments, c.pivot, c.twice_c1, c.twice_c2);
    if (map != nullptr && c.map_kind == MapKind::kSimilarity) m_s.store(map + v * kLanes);
    if (!c.weights_wanted) return;

    const V m_a = attention(m_s, c.inverse_width, c.gamma, c.mu);
    const Weighted<V> w = weighted(c.distance, m_a, difference, c.eps_squared);
    if (residual != nullptr) w.residual.store(residual + v * kLanes);
    if (map != nullptr && c.map_kind == MapKind::kAttention) m_a.store(map + v * kLanes);
    if (map != nullptr && c.map_kind == MapKind::kLoss) w.loss.store(map + v * kLanes);
    sums[0] = sums[0] + only(inside, w.loss);
    if (c.stats_wanted) {
      sums[1 + kAbsError] = sums[1 + kAbsError] + only(inside, absolute(difference));
      sums[1 + kSquaredError] = sums[1 + kSquaredError] + only(inside, difference * difference);
      sums[1 + kSimilarityStat] = sums[1 + kSimilarityStat] + only(inside, m_s);
      sums[1 + kAttentionStat] = sums[1 + kAttentionStat] + only(inside, m_a);
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
  T* sum_row_;
  T* difference_row_;
  T* sr_scratch_;
  T* hr_scratch_;
  T* output_scratch_[4];
  T* inside_;          // a mask: the lanes that are columns of the tile
  Cell** rows_;
  int* source_;        // columns whose values stand outside the image
  int outside_left_;
  int outside_right_;
  T pivot_;
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
  const T delta = params.alpha * step_of(params) + params.beta;
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
  if (params.loss != nullptr) *params.loss = T(params.loss_scale * sums[0]);
  if (params.stats != nullptr) {
    const double numel = double(params.leading[0]) * params.leading[1] * params.leading[2] * params.height * params.width;
    for (int i = 0; i < kNumStats; ++i) params.stats[i] = T(sums[1 + i] / numel);
  }
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
