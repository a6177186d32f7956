// Splatting tile by tile: what the points of a tile give to the vertices around them is summed while their values
// are in the cache, in one row for every vertex that the tile touches; then each vertex adds up its rows. Values need
// no array of their own for all points, and are not read again from far away for each of their vertices.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels.hpp"
#include "lattice.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace crfasrnn {

// Ranges of consecutive points, none of them longer than `most_points`.
struct Tiles {
  // Rows of 24 floats then take 96 KiB; longer tiles touch hardly fewer vertices.
  static constexpr std::size_t most_points = 1024;
  std::vector<std::uint32_t> start;  // the first point of each, and at last N

  // Every square is cut into whole tiles.
  explicit Tiles(std::span<const Square> squares);
  std::size_t size() const { return start.size() - 1; }
  std::size_t n_points(std::size_t tile) const { return start[tile + 1] - start[tile]; }

  // Call body(tile, begin, end) with the points of all tiles, on any thread.
  template <class Body>
  void for_all(const Body& body) const {
    constexpr std::size_t at_once = 2;
    parallel_for(size(), at_once, [&](std::size_t first, std::size_t last) {
      for (std::size_t tile = first; tile < last; ++tile) body(tile, start[tile], start[tile + 1]);
    });
  }
  // Call body(tile, first) for the tiles of a square one after the other; `first` is counted in the square.
  template <class Body>
  void for_square(const Square& square, const Body& body) const {
    const auto at = std::lower_bound(start.begin(), start.end(), square.first_point);
    const std::size_t end = square.first_point + square.n_points();
    for (auto tile = static_cast<std::size_t>(at - start.begin()); start[tile] < end; ++tile) {
      body(tile, start[tile] - square.first_point);
    }
  }
};

class TiledSplat {
 public:
  TiledSplat(const Lattice& lattice, const Tiles& tiles);

  // Rows of sums that all tiles together write.
  std::size_t n_sums() const { return sums_of_.size(); }
  // Write the sums of one tile from the values of its points.
  void splat(int width, std::size_t tile, const float* values, float* sums) const;
  // vertices [M] = sums of all tiles, each row then mapped.
  void add_up(int width, const float* sums, const LabelMap& map, float* vertices) const;

 private:
  std::vector<std::uint32_t> first_point_;  // of each tile
  std::vector<std::uint32_t> first_entry_;  // of each tile, and their number
  std::vector<std::uint32_t> first_sum_;
  Buffer<std::uint16_t> points_;      // of each entry, counted in its tile
  Buffer<float> weights_;             // of each entry
  Buffer<std::uint16_t> lengths_;     // of each sum: so many entries
  Buffer<std::uint32_t> sums_start_;  // [M + 1]
  Buffer<std::uint32_t> sums_of_;     // each vertex's sums, from those of its first tile on
};

}  // namespace crfasrnn
