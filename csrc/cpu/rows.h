// Reads rows of s = x + y and d = x - y, with their halo, from the user's memory. The dtypes, strides and padding of
// the images are handled here only.
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
      for (int i = 0; i < count; ++i) buffer[i] = T(widen(from[3 * i]));
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
  static constexpr int kLanes = PSPL_VECTOR_BYTES / sizeof(T);
  static constexpr int64_t kRowsAhead = 4;
  using V = Vec<T, kLanes>;

 public:
  RowReader(const ForwardParams<T>& params, const Tile& tile, int radius)
      : p_(params),
        radius_(radius),
        first_(tile.left > radius ? -radius : -tile.left),
        last_((params.width - tile.right > radius ? tile.right + radius : params.width) - tile.left),
        sr_index_(tile.offset(params.sr.strides) + (tile.left + first_) * params.sr.strides.column),
        hr_index_(tile.offset(params.hr.strides) + (tile.left + first_) * params.hr.strides.column),
        sr_buffer_(last_ - first_),
        hr_buffer_(last_ - first_),
        source_(2 * radius + 1) {
    if (params.padding == Padding::kZeros) return;
    const int columns = tile.right - tile.left;
    left_ = first_ + radius;
    right_ = columns + radius - last_;
    for (int i = 0; i < left_ + right_; ++i) {
      const int column = i < left_ ? i - radius : last_ + i - left_;
      source_.get()[i] = padded_index(tile.left + column, params.width, params.padding) - tile.left;
    }
  }

  // Starts to load a row that is read a little later than row y. One row at a time, between other work: the processor
  // waits if too many loads are under way.
  PSPL_INLINE void prefetch_ahead_of(int64_t y) const {
    y += kRowsAhead;
    if (y < 0 || y >= p_.height) return;
    const int count = last_ - first_;
    prefetch<0>(p_.sr.data, sr_index_ + y * p_.sr.strides.row, p_.sr.strides.column, count, size_of(p_.sr.dtype));
    prefetch<0>(p_.hr.data, hr_index_ + y * p_.hr.strides.row, p_.hr.strides.column, count, size_of(p_.hr.dtype));
  }

  // Fills s and d, both on vector boundaries, from column -radius to column `radius` after the tile. Zero padding
  // beside the image is not written: the caller sets it once.
  void read(int64_t y, T* s, T* d) const {
    y = padded_index(y, p_.height, p_.padding);
    if (y < 0) {
      for (int i = first_; i < last_; ++i) s[i] = d[i] = T(0);
      return;
    }
    const T* sr = pixels(p_.sr, sr_index_ + y * p_.sr.strides.row, last_ - first_, sr_buffer_.get()) - first_;
    const T* hr = pixels(p_.hr, hr_index_ + y * p_.hr.strides.row, last_ - first_, hr_buffer_.get()) - first_;
    combine(sr, hr, s, d);
    // The padding beside the image copies columns that have just been read: at most radius of them, or the whole row if
    // it is shorter.
    for (int i = 0; i < left_ + right_; ++i) {
      const int column = i < left_ ? i - radius_ : last_ + i - left_;
      s[column] = s[source_.get()[i]];
      d[column] = d[source_.get()[i]];
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
    if (last_ - first_ < kLanes) {
      for (int i = first_; i < last_; ++i) {
        s[i] = sr[i] + hr[i];
        d[i] = sr[i] - hr[i];
      }
      return;
    }
    combine_vector(first_);
    for (int i = first_ + -first_ % kLanes; i < last_ - kLanes; i += kLanes) combine_vector(i);
    combine_vector(last_ - kLanes);
  }

  const ForwardParams<T>& p_;
  const int radius_;
  const int first_;  // columns [first_, last_) are inside the image and at most radius beside the tile
  const int last_;
  const int64_t sr_index_;  // the element at row 0, column first_
  const int64_t hr_index_;
  const AlignedBuffer<T> sr_buffer_;
  const AlignedBuffer<T> hr_buffer_;
  const AlignedBuffer<int>
      source_;  // where the columns outside the image come from: left_ ones before it, right_ behind
  int left_ = 0;
  int right_ = 0;
};

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
