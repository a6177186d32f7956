#include "tiles.hpp"

#include <algorithm>
#include <utility>

namespace crfasrnn {
namespace {

constexpr std::size_t vertices_at_once = 1 << 12;
constexpr std::size_t tiles_at_once = 16;

// Sums of equally many entries follow one another, so that the ends of their loops can be predicted; longer ones are
// not told apart.
constexpr std::uint32_t longest = 32;

}  // namespace

Tiles::Tiles(std::span<const Square> squares) {
  std::size_t n_points = 0;
  for (const Square& square : squares) {
    const std::size_t n = square.n_points();
    const std::size_t parts = (n + most_points - 1) / most_points;
    for (std::size_t part = 0; part < parts; ++part) {
      start.push_back(static_cast<std::uint32_t>(square.first_point + n * part / parts));
    }
    n_points += n;
  }
  start.push_back(static_cast<std::uint32_t>(n_points));
}

TiledSplat::TiledSplat(const Lattice& lattice, const Tiles& tiles)
    : first_point_(tiles.start), first_entry_(tiles.size() + 1), first_sum_(tiles.size() + 1) {
  const std::size_t n_tiles = tiles.size();
  const std::size_t n_vertices = lattice.n_vertices();
  const auto n_corners = static_cast<std::uint32_t>(lattice.n_corners());
  const SplatEntry* entries = lattice.splat_entries();
  const std::uint32_t* start = lattice.splat_start();
  for (std::size_t tile = 0; tile <= n_tiles; ++tile) first_entry_[tile] = tiles.start[tile] * n_corners;

  Buffer<std::uint32_t> tile_of(first_point_.back());
  parallel_for(n_tiles, tiles_at_once, [&](std::size_t begin, std::size_t end) {
    for (std::size_t tile = begin; tile < end; ++tile) {
      std::fill(tile_of.data() + tiles.start[tile], tile_of.data() + tiles.start[tile + 1], static_cast<std::uint32_t>(tile));
    }
  });
  // The points of a vertex ascend: cut its entries where another tile begins. A range of vertices writes where its
  // entries begin, as if each were a part.
  sums_start_ = Buffer<std::uint32_t>(n_vertices + 1);
  Buffer<std::uint32_t> sparse(first_entry_.back());
  parallel_for(n_vertices, vertices_at_once, [&](std::size_t begin, std::size_t end) {
    std::uint32_t* part = sparse.data() + start[begin];
    for (std::size_t v = begin; v < end; ++v) {
      const std::uint32_t* const own = part;
      std::uint32_t end_of_tile = 0;
      for (std::uint32_t i = start[v]; i < start[v + 1]; ++i) {
        const std::uint32_t point = entries[i].point;
        if (point < end_of_tile) continue;
        end_of_tile = first_point_[tile_of[point] + 1];
        *part++ = i;
      }
      sums_start_[v] = static_cast<std::uint32_t>(part - own);
    }
  });
  std::uint32_t n_sums = 0;
  for (std::size_t v = 0; v < n_vertices; ++v) n_sums += std::exchange(sums_start_[v], n_sums);
  sums_start_[n_vertices] = n_sums;
  Buffer<std::uint32_t> first(n_sums + std::size_t{1});  // entry of each part
  first[n_sums] = first_entry_.back();
  parallel_for(n_vertices, vertices_at_once, [&](std::size_t begin, std::size_t end) {
    std::copy_n(sparse.data() + start[begin], sums_start_[end] - sums_start_[begin], first.data() + sums_start_[begin]);
  });

  // The parts of each tile, in the order of vertices.
  std::fill(first_sum_.begin(), first_sum_.end(), 0U);
  in_pieces(n_sums, pause, [&](std::size_t begin, std::size_t end) {
    for (std::size_t part = begin; part < end; ++part) ++first_sum_[tile_of[entries[first[part]].point]];
  });
  std::uint32_t total = 0;
  for (std::uint32_t& n : first_sum_) total += std::exchange(n, total);
  Buffer<std::uint32_t> parts(n_sums);
  std::vector<std::uint32_t> cursor(first_sum_);
  in_pieces(n_sums, pause, [&](std::size_t begin, std::size_t end) {
    for (std::size_t part = begin; part < end; ++part) {
      parts[cursor[tile_of[entries[first[part]].point]]++] = static_cast<std::uint32_t>(part);
    }
  });

  points_ = Buffer<std::uint16_t>(first_entry_.back());
  weights_ = Buffer<float>(first_entry_.back());
  lengths_ = Buffer<std::uint16_t>(n_sums);
  sums_of_ = Buffer<std::uint32_t>(n_sums);
  parallel_for(n_tiles, tiles_at_once, [&](std::size_t begin, std::size_t end) {
    for (std::size_t tile = begin; tile < end; ++tile) {
      // For each length, the place of the next sum and of its first entry.
      std::uint32_t sum[longest + 2] = {};
      std::uint32_t entry[longest + 2] = {};
      const auto length_of = [&](std::uint32_t part) { return first[part + 1] - first[part]; };
      for (std::uint32_t i = first_sum_[tile]; i < first_sum_[tile + 1]; ++i) {
        const std::uint32_t length = length_of(parts[i]);
        ++sum[std::min(length, longest) + 1];
        entry[std::min(length, longest) + 1] += length;
      }
      sum[0] = first_sum_[tile];
      entry[0] = first_entry_[tile];
      for (std::uint32_t length = 0; length <= longest; ++length) {
        sum[length + 1] += sum[length];
        entry[length + 1] += entry[length];
      }
      for (std::uint32_t i = first_sum_[tile]; i < first_sum_[tile + 1]; ++i) {
        const std::uint32_t length = length_of(parts[i]);
        const std::uint32_t s = sum[std::min(length, longest)]++;
        std::uint32_t& to = entry[std::min(length, longest)];
        sums_of_[parts[i]] = s;
        lengths_[s] = static_cast<std::uint16_t>(length);
        for (std::uint32_t from = first[parts[i]]; from < first[parts[i] + 1]; ++from, ++to) {
          points_[to] = static_cast<std::uint16_t>(entries[from].point - tiles.start[tile]);
          weights_[to] = entries[from].weight;
        }
      }
    }
  });
}

void TiledSplat::splat(int width, std::size_t tile, const float* values, float* sums) const {
  const std::size_t first = first_sum_[tile];
  const TileEntries entries{points_.data() + first_entry_[tile], weights_.data() + first_entry_[tile],
                            lengths_.data() + first, first_sum_[tile + 1] - first};
  kernels().splat_tile(width, entries, values, sums + first * static_cast<std::size_t>(width));
}

void TiledSplat::add_up(int width, const float* sums, const LabelMap& map, float* vertices) const {
  constexpr std::size_t grain = 1 << 11;
  const Kernels& k = kernels();
  parallel_for(sums_start_.size() - 1, grain, [&](std::size_t begin, std::size_t end) {
    k.add_up(width, sums_start_.data(), sums_of_.data(), sums, vertices, begin, end);
    if (map.kind != LabelMap::Kind::identity) k.map_labels(width, map, vertices, vertices, begin, end);
  });
}

}  // namespace crfasrnn
