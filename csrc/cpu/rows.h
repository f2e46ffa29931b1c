// The rows of a tile, and how they are read: s = x + y and d = x - y, with their halo, from the user's memory. The
// dtypes, strides and padding of the images are handled here only.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../pspl_math.h"
#include "../pspl_params.h"
#include "aligned_buffer.h"
#include "elements.h"
#include "instruction_set.h"
#include "simd.h"
#include "tiling.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

// A vector for every kLanes columns of the widest tile.
template <typename T>
using Row = Vector<T>[kStripColumns<T> / kLanes<T>];

// Over the windows, or parts of windows, around the pixels of a row.
template <typename T>
struct RowMoments {
  Row<T> mean;
  Row<T> variance;
};

template <typename T>
struct BlurredRow {
  RowMoments<T> s;
  RowMoments<T> d;
};

// A row of s and d as it is read, on vector boundaries. Its halo lies before column 0 and behind the last one.
template <typename T>
struct InputRow {
  T* s;
  T* d;
};

// `count` pixels of a row, starting at `index`, in the compute type: the user's memory itself if it has that type.
template <typename T>
const T* pixels(const InputImage& image, int64_t index, int count, T* buffer) {
  const int64_t stride = image.strides.column;
  return with_element(image.dtype, [&](auto* type) -> const T* {
    using E = std::remove_pointer_t<decltype(type)>;
    const E* from = static_cast<const E*>(image.data) + index;
    if (stride == 1) {
      if constexpr (std::is_same_v<E, T>) return from;
      for (int i = 0; i < count; ++i) buffer[i] = T(widen(from[i]));
    } else if (stride == 3) {  // channels_last, by shuffles: the compiler knows the stride
      for (int i = 0, at = 0; i < count; ++i, at += 3) buffer[i] = T(widen(from[at]));
    } else {
      for (int i = 0; i < count; ++i) buffer[i] = T(widen(from[i * stride]));
    }
    return buffer;
  });
}

// The rows of a tile are short and far apart: the processor does not prefetch the next one by itself. kWrite is 1 for
// memory that will be written.
template <int kWrite>
PSPL_INLINE void prefetch(const void* data, int64_t index, int64_t stride, int count, int64_t element_size) {
  constexpr int64_t kCacheLine = 64;
  if (stride * element_size > kCacheLine) return;
  const char* from = static_cast<const char*>(data) + index * element_size;
  for (int64_t i = 0; i < count * stride * element_size; i += kCacheLine) __builtin_prefetch(from + i, kWrite);
}

// Reads for one tile. Columns are counted from its left edge.
template <typename T>
class RowReader {
  static constexpr int64_t kRowsAhead = 4;
  using V = Vector<T>;

 public:
  RowReader(const ForwardParams<T>& p, const Tile& tile, int radius)
      : p(p),
        radius(radius),
        first(tile.left > radius ? -radius : -tile.left),
        last((p.width - tile.right > radius ? tile.right + radius : p.width) - tile.left),
        sr_index(tile.offset(p.sr.strides) + (tile.left + first) * p.sr.strides.column),
        hr_index(tile.offset(p.hr.strides) + (tile.left + first) * p.hr.strides.column),
        sr_buffer(last - first),
        hr_buffer(last - first),
        source(2 * radius + 1) {
    if (p.padding == Padding::kZeros) return;
    const int columns = tile.right - tile.left;
    before = first + radius;
    behind = columns + radius - last;
    for (int i = 0; i < before + behind; ++i) {
      const int column = i < before ? i - radius : last + i - before;
      source.get()[i] = padded_index(tile.left + column, p.width, p.padding) - tile.left;
    }
  }

  // Starts to load a row that is read a little later than row y. One row at a time, between other work: the processor
  // waits if too many loads are under way.
  PSPL_INLINE void prefetch_ahead_of(int64_t y) const {
    y += kRowsAhead;
    if (y < 0 || y >= p.height) return;
    const int count = last - first;
    prefetch<0>(p.sr.data, sr_index + y * p.sr.strides.row, p.sr.strides.column, count, size_of(p.sr.dtype));
    prefetch<0>(p.hr.data, hr_index + y * p.hr.strides.row, p.hr.strides.column, count, size_of(p.hr.dtype));
  }

  // Fills a row from column -radius to column `radius` after the tile. Zero padding beside the image is not written:
  // the caller sets it once.
  void read(int64_t y, const InputRow<T>& row) const {
    T *const s = row.s, *const d = row.d;
    y = padded_index(y, p.height, p.padding);
    if (y < 0) {
      for (int i = first; i < last; ++i) s[i] = d[i] = T(0);
      return;
    }
    const T* sr = pixels(p.sr, sr_index + y * p.sr.strides.row, last - first, sr_buffer.get()) - first;
    const T* hr = pixels(p.hr, hr_index + y * p.hr.strides.row, last - first, hr_buffer.get()) - first;
    combine(sr, hr, s, d);
    // The padding beside the image copies columns that have just been read: at most radius of them, or the whole row if
    // it is shorter.
    for (int i = 0; i < before + behind; ++i) {
      const int column = i < before ? i - radius : last + i - before;
      s[column] = s[source.get()[i]];
      d[column] = d[source.get()[i]];
    }
  }

 private:
  // Vectors on the boundaries of s and d, and one at either end that overlaps its neighbour, so that nothing is read
  // outside the user's row.
  PSPL_INLINE void combine(const T* sr, const T* hr, T* s, T* d) const {
    const auto combine_vector = [&](int i) {
      const V x = V::load(sr + i), y = V::load(hr + i);
      (x + y).store(s + i);
      (x - y).store(d + i);
    };
    if (last - first < kLanes<T>) {
      for (int i = first; i < last; ++i) {
        s[i] = sr[i] + hr[i];
        d[i] = sr[i] - hr[i];
      }
      return;
    }
    combine_vector(first);
    for (int i = first + -first % kLanes<T>; i < last - kLanes<T>; i += kLanes<T>) combine_vector(i);
    combine_vector(last - kLanes<T>);
  }

  const ForwardParams<T>& p;
  const int radius;
  const int first;  // columns [first, last) are inside the image and at most radius beside the tile
  const int last;
  const int64_t sr_index;  // the element at row 0, column first
  const int64_t hr_index;
  const AlignedBuffer<T> sr_buffer;
  const AlignedBuffer<T> hr_buffer;
  const AlignedBuffer<int> source;  // where the columns outside the image come from: `before` ones, then `behind` ones
  int before = 0;
  int behind = 0;
};

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
