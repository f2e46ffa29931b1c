// Divides an image into jobs. The division depends on its size only and not on the number of threads, so that the
// result is bitwise the same for any number of them.
#pragma once

#include <cstdint>

#include "../pspl_params.h"
#include "instruction_set.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// The ring of blurred rows of such a strip takes 23 KiB for the 11 x 11 window, which fits in the first-level cache.
template <typename T>
constexpr int kStripColumns = 384 / sizeof(T);

// A tile repeats the loading and the blur along the row of 2 radius rows above it. Bands are shorter than
// kLongestBand only if there would be too few tiles for the cores.
constexpr int64_t kLongestBand = 256;
constexpr int64_t kShortestBand = 64;
constexpr int64_t kEnoughTiles = 64;
// Giving fewer pixels than this to another thread costs more than it saves, in particular on a busy machine. It is a
// quarter of torch's minimum of elements per thread, because a pixel costs more here.
constexpr int64_t kWorthAThread = 8192;

template <typename T>
struct Tiling {
  int64_t strips;
  int64_t bands;
  int64_t band_rows;
  int64_t tiles;
  int64_t tiles_of_a_job;

  explicit Tiling(const ForwardParams<T>& p) {
    strips = divide_up(p.width, kStripColumns<T>);
    band_rows = divide_up(p.height, divide_up(kEnoughTiles, p.planes() * strips));
    if (band_rows < kShortestBand) band_rows = kShortestBand;
    if (band_rows > kLongestBand) band_rows = kLongestBand;
    bands = divide_up(p.height, band_rows);
    band_rows = round_up(divide_up(p.height, bands), 2);  // rows are finished in pairs
    bands = divide_up(p.height, band_rows);
    tiles = p.planes() * strips * bands;
    tiles_of_a_job = divide_up(kWorthAThread * tiles, p.numel());
  }

  int64_t jobs() const { return divide_up(tiles, tiles_of_a_job); }
};

// Rows [top, bottom) and columns [left, right) of one plane.
struct Tile {
  int64_t leading[kLeadingDims];
  int64_t top, bottom, left, right;

  int64_t offset(const Strides& strides) const { return strides.plane_offset(leading[0], leading[1], leading[2]); }
};

// The channel varies fastest, so that the tiles of a channels_last image that share cache lines are consecutive.
template <typename T>
Tile tile_of(const ForwardParams<T>& p, const Tiling<T>& tiling, int64_t index) {
  Tile tile;
  tile.leading[2] = index % p.leading[2];
  index /= p.leading[2];
  tile.left = index % tiling.strips * kStripColumns<T>;
  index /= tiling.strips;
  tile.top = index % tiling.bands * tiling.band_rows;
  index /= tiling.bands;
  tile.leading[1] = index % p.leading[1];
  tile.leading[0] = index / p.leading[1];
  tile.right = tile.left + kStripColumns<T> < p.width ? tile.left + kStripColumns<T> : p.width;
  tile.bottom = tile.top + tiling.band_rows < p.height ? tile.top + tiling.band_rows : p.height;
  return tile;
}

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
