// How an image is cut into jobs, from its size alone: never from the number of threads, so that the result is the same,
// bit for bit, on any number of them.
#pragma once

#include <cstdint>

#include "../pspl_math.h"
#include "../pspl_params.h"
#include "instruction_set.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// The ring of blurred rows of a strip this wide takes 23 KiB for the 11 x 11 window: it stays in the first-level cache.
template <typename T>
constexpr int kStripColumns = 384 / sizeof(T);

// A tile repeats the loading and the blur along the row for the 2 radius rows above it. Bands are shorter than the
// longest only where there would not be enough tiles for the cores otherwise.
constexpr int64_t kLongestBand = 256;
constexpr int64_t kShortestBand = 64;
constexpr int64_t kEnoughTiles = 64;
// PyTorch gives a thread no fewer elements than this: starting one takes longer than the work, and far longer while
// other programs use the cores.
constexpr int64_t kGrainSize = 32768;

template <typename T>
struct Tiling {
  int64_t strips;
  int64_t strip_columns;
  int64_t bands;
  int64_t band_rows;
  int64_t tiles;
  int64_t jobs;

  explicit Tiling(const ForwardParams<T>& p) {
    constexpr int64_t kCacheLine = 64 / sizeof(T);
    const int64_t grains = ceil_div(p.numel(), kGrainSize);
    strips = ceil_div(p.width, kStripColumns<T>);
    strip_columns = round_up(ceil_div(p.width, strips), kCacheLine);
    strips = ceil_div(p.width, strip_columns);
    band_rows = ceil_div(p.height, ceil_div(grains < kEnoughTiles ? grains : kEnoughTiles, p.planes() * strips));
    if (band_rows < kShortestBand) band_rows = kShortestBand;
    if (band_rows > kLongestBand) band_rows = kLongestBand;
    bands = ceil_div(p.height, band_rows);
    band_rows = round_up(ceil_div(p.height, bands), 2);  // rows are finished in pairs
    bands = ceil_div(p.height, band_rows);
    tiles = p.planes() * strips * bands;
    jobs = grains < tiles ? grains : tiles;
  }

  // The tiles of a job are [first_tile(job), first_tile(job + 1)).
  int64_t first_tile(int64_t job) const { return job * tiles / jobs; }
};

// Rows [top, bottom) and columns [left, right) of one plane.
struct Tile {
  int64_t leading[kLeadingDims];
  int64_t top, bottom, left, right;

  int64_t offset(const Strides& strides) const { return strides.plane_offset(leading[0], leading[1], leading[2]); }
};

// The channel runs fastest: the tiles of a channels_last image that share their memory follow each other.
template <typename T>
Tile tile_of(const ForwardParams<T>& p, const Tiling<T>& tiling, int64_t index) {
  Tile tile;
  tile.leading[2] = index % p.leading[2];
  index /= p.leading[2];
  tile.left = index % tiling.strips * tiling.strip_columns;
  index /= tiling.strips;
  tile.top = index % tiling.bands * tiling.band_rows;
  index /= tiling.bands;
  tile.leading[1] = index % p.leading[1];
  tile.leading[0] = index / p.leading[1];
  tile.right = tile.left + tiling.strip_columns < p.width ? tile.left + tiling.strip_columns : p.width;
  tile.bottom = tile.top + tiling.band_rows < p.height ? tile.top + tiling.band_rows : p.height;
  return tile;
}

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
