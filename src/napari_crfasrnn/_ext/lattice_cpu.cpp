#include "lattice.hpp"

#include <algorithm>
#include <cmath>

#include "parallel.hpp"

namespace crfasrnn {

float Lattice::slice_gain() const { return 1.0F / (1.0F + std::ldexp(1.0F, -n_dims_)); }

std::size_t Lattice::n_bytes() const {
  std::size_t total =
      vertex_of_.n_bytes() + weight_of_.n_bytes() + splat_start_.n_bytes() + splat_entries_.n_bytes();
  for (const BlurGroup& group : groups_) {
    for (const BlurGroup::Axis& axis : group.axes) total += axis.chain.n_bytes() + axis.start.n_bytes();
  }
  return total;
}

namespace {

// Cut the vertices into ranges of equal work, not of equally many: flat regions have vertices with
// thousands of points. A range of entries belongs to the vertices that start in it.
template <class Body>
void for_vertices_by_entries(const std::uint32_t* start, std::size_t n_vertices, const Body& body) {
  constexpr std::size_t grain = 1 << 14;
  const std::uint32_t* stop = start + n_vertices;
  parallel_for(*stop, grain, [&](std::size_t begin, std::size_t end) {
    body(static_cast<std::size_t>(std::lower_bound(start, stop, begin) - start),
         static_cast<std::size_t>(std::lower_bound(start, stop, end) - start));
  });
}

// Sums of single values are sorted and taken so many at a time.
constexpr std::size_t scalars_at_once = 1 << 11;

}  // namespace

void Lattice::splat(int width, const SplatEntry* entries, const ValueRows& values, const LabelMap& map,
                    float* vertices) const {
  const std::uint32_t* start = splat_start_.data();
  for_vertices_by_entries(start, n_vertices_, [&](std::size_t first, std::size_t last) {
    kernels().splat(width, start, entries, values, vertices, first, last);
    if (map.kind != LabelMap::Kind::identity) kernels().map_labels(width, map, vertices, vertices, first, last);
  });
}

void Lattice::splat_shares(int width, const SplatEntry* entries, const Share* marginals, const LabelMap& map,
                           float* vertices) const {
  const std::uint32_t* start = splat_start_.data();
  for_vertices_by_entries(start, n_vertices_, [&](std::size_t first, std::size_t last) {
    kernels().splat_shares(width, start, entries, marginals, vertices, first, last);
    if (map.kind != LabelMap::Kind::identity) kernels().map_labels(width, map, vertices, vertices, first, last);
  });
}

Buffer<ScalarSum> Lattice::scalar_sums() const {
  static constexpr std::uint32_t most_entries = 64;  // above, the loop is long and its end matters little
  Buffer<ScalarSum> sums(n_vertices_);
  const std::uint32_t* start = splat_start_.data();
  parallel_for(n_vertices_, scalars_at_once, [&](std::size_t first, std::size_t last) {
    std::size_t cursor[most_entries + 2] = {};
    const auto n_entries = [start](std::size_t v) { return std::min<std::uint32_t>(start[v + 1] - start[v], most_entries); };
    for (std::size_t v = first; v < last; ++v) ++cursor[n_entries(v) + 1];
    for (std::size_t n = 0; n <= most_entries; ++n) cursor[n + 1] += cursor[n];
    for (std::size_t v = first; v < last; ++v) {
      sums[first + cursor[n_entries(v)]++] = {static_cast<std::uint32_t>(v), start[v], start[v + 1]};
    }
  });
  return sums;
}

void Lattice::splat_scalars(const Buffer<ScalarSum>& sums, const SplatEntry* entries, const float* values,
                            float* vertices) const {
  parallel_for(n_vertices_, scalars_at_once, [&](std::size_t first, std::size_t last) {
    kernels().splat_scalars(sums.data(), entries, values, vertices, first, last);
  });
}

void Lattice::blur(int width, float* vertices, bool transpose) const {
  constexpr std::size_t blocks_at_once = 4;
  const Kernels& k = kernels();
  const auto blur_group = [&](const BlurGroup& group) {
    parallel_for(group.n_blocks, blocks_at_once, [&](std::size_t begin, std::size_t end) {
      for (std::size_t block = begin; block < end; ++block) {
        for (std::size_t i = 0; i < group.axes.size(); ++i) {
          const BlurGroup::Axis& axis = group.axes[transpose ? group.axes.size() - 1 - i : i];
          k.blur(width, axis.chain.data(), vertices, axis.start[block], axis.start[block + 1]);
        }
      }
    });
  };
  for (std::size_t g = 0; g < groups_.size(); ++g) blur_group(groups_[transpose ? groups_.size() - 1 - g : g]);
}

void Lattice::filter(std::span<const float> values, std::span<float> out, std::size_t n_values, bool transpose) const {
  if (n_points_ == 0 || n_values == 0) return;
  constexpr std::size_t grain = 1 << 11;
  const Kernels& k = kernels();
  for (std::size_t first = 0; first < n_values; first += max_width) {
    const std::size_t count = std::min<std::size_t>(max_width, n_values - first);
    const int width = padded_width(count);
    const auto w = static_cast<std::size_t>(width);
    // Rows that can be read `width` wide without leaving the array; the rest are copied.
    const std::size_t room = n_points_ * n_values - first;
    const std::size_t n_safe = room < w ? 0 : std::min(n_points_, (room - w) / n_values + 1);
    Buffer<float> tail((n_points_ - n_safe) * w);
    for (std::size_t p = n_safe; p < n_points_; ++p) {
      float* row = tail.data() + (p - n_safe) * w;
      std::fill(row, row + w, 0.0F);
      std::copy_n(values.data() + p * n_values + first, count, row);
    }
    const ValueRows rows{values.data() + first, n_values, static_cast<std::uint32_t>(n_safe), tail.data(), w};
    Buffer<float> vertices(n_vertices_ * w);
    splat(width, splat_entries_.data(), rows, LabelMap{}, vertices.data());
    blur(width, vertices.data(), transpose);
    parallel_for(n_points_, grain, [&](std::size_t begin, std::size_t end) {
      k.slice(width, vertex_of_.data(), weight_of_.data(), n_corners(), slice_gain(), vertices.data(),
              out.data() + first, n_values, static_cast<int>(count), begin, end);
    });
  }
}

void Lattice::row_sums(std::span<float> out) const {
  constexpr std::size_t grain = 1 << 11;
  const Kernels& k = kernels();
  Buffer<float> vertices(n_vertices_);
  for_vertices_by_entries(splat_start_.data(), n_vertices_, [&](std::size_t first, std::size_t last) {
    k.splat_ones(splat_start_.data(), splat_entries_.data(), vertices.data(), first, last);
  });
  blur(1, vertices.data(), false);
  parallel_for(n_points_, grain, [&](std::size_t begin, std::size_t end) {
    k.slice(1, vertex_of_.data(), weight_of_.data(), n_corners(), slice_gain(), vertices.data(), out.data(), 1, 1,
            begin, end);
  });
}

}  // namespace crfasrnn
