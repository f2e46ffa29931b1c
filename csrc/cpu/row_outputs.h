// From the moments of a row to its outputs: similarity, attention, loss and gradient, each in a loop of its own. They
// are long chains of dependent operations, and a short loop lets the processor work on several vectors at once.
#pragma once

#include <cstdint>

#include "../pspl_math.h"
#include "../pspl_params.h"
#include "elements.h"
#include "instruction_set.h"
#include "rows.h"
#include "simd.h"
#include "tiling.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

// The outputs of one tile.
template <typename T>
class RowOutputs {
  using V = Vector<T>;

 public:
  RowOutputs(const ForwardParams<T>& p, const Tile& tile, T inverse_delta)
      : p(p),
        tile(tile),
        inverse_delta(inverse_delta),
        columns(static_cast<int>(tile.right - tile.left)),
        vectors(static_cast<int>(ceil_div(columns, kLanes<T>))) {
    for (int i = 0; i < vectors * kLanes<T>; ++i)
      scalars(inside)[i] = bit_cast<T>(i < columns ? ~typename V::Bits(0) : typename V::Bits(0));
  }

  // The variance of s includes 2 C2. centre_d is d at the pixels themselves.
  void emit(int64_t y, const BlurredRow<T>& moments, const Row<T>& centre_d) {
    similarity_of(moments);
    if (map_wanted(Output::kSimilarityMap)) write_map(y, m_s);
    if (p.loss == nullptr && p.stats == nullptr && p.gradient.data == nullptr &&
        (p.map.data == nullptr || p.output == Output::kSimilarityMap))
      return;
    attention_of_similarity();
    loss_of_distance(y, centre_d);
    if (map_wanted(Output::kAttentionMap)) write_map(y, m_a);
    if (map_wanted(Output::kLossMap)) write_map(y, loss);
    if (p.stats != nullptr) add_stats(centre_d);
  }

  // A store to memory that is not in the cache holds up all later ones. Always inlined: g++ drops calls of a function
  // that does nothing but prefetch.
  PSPL_INLINE void prefetch_row(int64_t y) const {
    if (p.gradient.data != nullptr)
      prefetch<1>(p.gradient.data, offset(p.gradient.strides, y), p.gradient.strides.column, columns,
                  size_of(p.gradient.dtype));
    if (p.map.data != nullptr)
      prefetch<1>(p.map.data, offset(p.map.strides, y), p.map.strides.column, columns, sizeof(T));
  }

  // Of the rows so far, to totals[kNumSums].
  void store_sums(double* totals) const {
    for (int i = 0; i < kNumSums; ++i) {
      totals[i] = 0;
      for (int lane = 0; lane < kLanes<T>; ++lane) totals[i] += sums[i][lane];
    }
  }

 private:
  bool map_wanted(Output map) const { return p.map.data != nullptr && p.output == map; }

  void similarity_of(const BlurredRow<T>& moments) {
    const T twice_c1 = p.twice_c1, twice_c2 = p.twice_c2;
    for (int v = 0, end = vectors; v < end; ++v)
      m_s[v] = similarity<Simd>(moments.s.mean[v], moments.d.mean[v], moments.s.variance[v], moments.d.variance[v],
                                twice_c1, twice_c2);
  }

  void attention_of_similarity() {
    const T inverse_delta = this->inverse_delta, gamma = p.gamma, mu = p.mu;
    for (int v = 0, end = vectors; v < end; ++v) m_a[v] = attention<Simd>(m_s[v], inverse_delta, gamma, mu);
  }

  // loss_of_row() for the distance of the call, a constant in its loop.
  template <int kFirst = 0>
  void loss_of_distance(int64_t y, const Row<T>& centre_d) {
    if (static_cast<int>(p.distance) == kFirst) return loss_of_row<static_cast<Distance>(kFirst)>(y, centre_d);
    if constexpr (kFirst + 1 < static_cast<int>(Distance::kCount)) loss_of_distance<kFirst + 1>(y, centre_d);
  }

  template <Distance kDistance>
  void loss_of_row(int64_t y, const Row<T>& centre_d) {
    const T eps_squared = p.eps_squared;
    // Straight to the user's memory if the row is dense there, and whole vectors wide.
    const bool in_place = p.gradient.data != nullptr && size_of(p.gradient.dtype) == sizeof(T) &&
                          p.gradient.strides.column == 1 && columns == vectors * kLanes<T>;
    T* const to = in_place ? static_cast<T*>(p.gradient.data) + offset(p.gradient.strides, y) : scalars(gradient);
    V sum(T(0));
    for (int v = 0, end = vectors; v < end; ++v) {
      const PixelLoss<V> pixel = pixel_loss<Simd>(kDistance, m_a[v], centre_d[v], eps_squared);
      pixel.gradient.store(to + v * kLanes<T>);
      loss[v] = pixel.loss;
      sum = sum + only(inside[v], pixel.loss);
    }
    add(kLossSum, sum);
    if (p.gradient.data == nullptr || in_place) return;
    if constexpr (sizeof(T) == sizeof(float)) {
      if (p.gradient.dtype == DType::kBFloat16)
        return write(static_cast<BFloat16*>(p.gradient.data), p.gradient.strides, y, gradient);
    }
    write(static_cast<T*>(p.gradient.data), p.gradient.strides, y, gradient);
  }

  void add_stats(const Row<T>& centre_d) {
    V row[kNumSums] = {V(T(0)), V(T(0)), V(T(0)), V(T(0)), V(T(0))};
    for (int v = 0; v < vectors; ++v) {
      const V mask = inside[v], d = centre_d[v];
      row[kAbsErrorSum] = row[kAbsErrorSum] + only(mask, Simd::absolute(d));
      row[kSquaredErrorSum] = row[kSquaredErrorSum] + only(mask, d * d);
      row[kSimilaritySum] = row[kSimilaritySum] + only(mask, m_s[v]);
      row[kAttentionSum] = row[kAttentionSum] + only(mask, m_a[v]);
    }
    for (int i = kAbsErrorSum; i < kNumSums; ++i) add(i, row[i]);
  }

  // One row is summed in the compute type, rows in double.
  PSPL_INLINE void add(int which, V row) {
    alignas(64) T lanes[kLanes<T>];
    row.store(lanes);
    for (int lane = 0; lane < kLanes<T>; ++lane) sums[which][lane] += lanes[lane];
  }

  // Of the tile's first element in row y.
  int64_t offset(const Strides& strides, int64_t y) const {
    return tile.offset(strides) + y * strides.row + tile.left * strides.column;
  }

  void write_map(int64_t y, const Row<T>& row) const { write(p.map.data, p.map.strides, y, row); }

  template <typename E>
  void write(E* data, const Strides& strides, int64_t y, const Row<T>& row) const {
    const T* from = reinterpret_cast<const T*>(row);
    E* to = data + offset(strides, y);
    const int64_t stride = strides.column;
    if (stride == 1) {
      for (int i = 0; i < columns; ++i) to[i] = narrow<E>(from[i]);
    } else {
      for (int i = 0; i < columns; ++i) to[i * stride] = narrow<E>(from[i]);
    }
  }

  static T* scalars(Row<T>& row) { return reinterpret_cast<T*>(row); }

  const ForwardParams<T>& p;
  const Tile& tile;
  const T inverse_delta;
  const int columns;
  const int vectors;
  Row<T> inside;  // all ones in the columns of the tile, zeros behind it
  Row<T> m_s;
  Row<T> m_a;
  Row<T> loss;
  Row<T> gradient;
  double sums[kNumSums][kLanes<T>] = {};
};

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
