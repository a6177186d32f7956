// The chains of neighbouring vertices along every axis, in blocks that stay in the cache while they are
// blurred: how to link them, given the table of vertices.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "lattice.hpp"
#include "parallel.hpp"
#include "plane_table.hpp"
#include "vertex_table.hpp"

namespace crfasrnn {

// Vertices that are looked up at a time.
inline constexpr std::size_t batch = 128;

// Put the vertices into blocks that are closed under steps along the axes of a group; returns how many.
template <int Words>
std::size_t assign_blocks(int first_axis, int last_axis, const KeyLayout& layout, const VertexTable<Words>& table,
                          const FirstException& failure, std::uint32_t* block_of) {
  constexpr std::uint32_t smallest_block = 256;
  const std::size_t m = table.size();
  // A step changes all coordinates outside of the group alike, so a sum of those with factors that sum
  // to 0 (modulo 2^64) stays as it is. Factors without a pattern tell apart nearly all sets that cannot
  // be reached from one another; if two are thrown together, that does no harm.
  std::uint64_t factors[max_dims + 1] = {};
  std::uint64_t state = 0x9E3779B97F4A7C15U;
  std::uint64_t sum = 0;
  int last_outside = 0;
  for (int j = 0; j <= layout.n_dims; ++j) {
    if (j >= first_axis && j < last_axis) continue;
    state = (state ^ (state >> 31)) * 0xD6E8FEB86659FD93U;
    factors[j] = state ^ (state >> 32);
    sum += factors[j];
    last_outside = j;
  }
  factors[last_outside] -= sum;
  // The last coordinate is minus the sum of the others.
  for (int j = 0; j < layout.n_dims; ++j) factors[j] -= factors[layout.n_dims];

  VertexTable<1> cosets(m / 64 + 1);
  std::vector<std::uint32_t> sizes;
  Key<1> wanted[batch];
  for (std::size_t first = 0; first < m; first += batch) {
    const std::size_t count = std::min(batch, m - first);
    for (std::size_t i = 0; i < count; ++i) {
      const Key<Words>& key = table.keys()[first + i];
      std::uint64_t coset = 0;
      for (int j = 0; j < layout.n_dims; ++j) coset += layout.field(key, j) * factors[j];
      wanted[i].words[0] = coset;
    }
    cosets.find_or_add(wanted, count, block_of + first);
    sizes.resize(cosets.size());
    for (std::size_t i = 0; i < count; ++i) ++sizes[block_of[first + i]];
    failure.pause();
  }
  std::uint32_t block = 0;
  std::uint32_t filled = 0;
  for (std::uint32_t& entry : sizes) {
    const std::uint32_t size = entry;
    entry = block;
    filled += size;
    if (filled >= smallest_block) {
      ++block;
      filled = 0;
    }
  }
  in_pieces(m, [&failure] { failure.pause(); }, [&](std::size_t begin, std::size_t end) {
    for (std::size_t v = begin; v < end; ++v) block_of[v] = sizes[block_of[v]];
  });
  return static_cast<std::size_t>(block) + (filled != 0 ? 1 : 0);
}

// Where only one axis is left outside a group, every vertex can be reached from every other. Blocks
// of a single axis may then be cut at the end of any chain.
inline void cut_between_chains(BlurGroup& group) {
  constexpr std::size_t nodes_per_cut = 1 << 11;
  BlurGroup::Axis& axis = group.axes[0];
  std::vector<std::uint32_t> cuts{0};
  for (std::size_t i = nodes_per_cut; i < axis.chain.size(); ++i) {
    if ((axis.chain[i] & chain_head) != 0 && i - cuts.back() >= nodes_per_cut) {
      cuts.push_back(static_cast<std::uint32_t>(i));
    }
  }
  cuts.push_back(static_cast<std::uint32_t>(axis.chain.size()));
  group.n_blocks = cuts.size() - 1;
  axis.start = Buffer<std::uint32_t>(cuts.size());
  std::copy(cuts.begin(), cuts.end(), axis.start.data());
}

// The vertex one step ahead of v along each axis, at [axis * M + v], or absent.
template <int Words>
Buffer<std::uint32_t> find_neighbours(const HashKeys<Words>& vertex_keys, const VertexTable<Words>& table) {
  const KeyLayout& layout = vertex_keys.layout();
  // Vertices with near numbers are near each other, and so are their neighbours: all axes take their turns
  // while that part of the table is in the cache.
  constexpr std::size_t at_once = 4096;
  const std::size_t m = table.size();
  const Key<Words>* keys = table.keys();
  const VertexFilter filter(keys, m);
  Buffer<std::uint32_t> next(static_cast<std::size_t>(layout.n_dims + 1) * m);
  parallel_for(m, at_once, [&](std::size_t begin, std::size_t end) {
    Key<Words> wanted[batch + 1];
    std::uint32_t asking[batch + 1];
    std::uint32_t found[batch];
    for (int axis = 0; axis <= layout.n_dims; ++axis) {
      const Key<Words> step = layout.template step<Words>(axis);
      std::uint32_t* own = next.data() + static_cast<std::size_t>(axis) * m;
      for (std::size_t first = begin; first < end; first += batch) {
        const std::size_t last = std::min(first + batch, end);
        std::size_t n_asking = 0;
        for (std::size_t v = first; v < last; ++v) {
          // No branch on what the filter says: half of all neighbours exist, and which, nobody can predict.
          wanted[n_asking] = keys[v] + step;
          asking[n_asking] = static_cast<std::uint32_t>(v);
          own[v] = VertexTable<Words>::absent;
          n_asking += static_cast<std::size_t>(filter.may_contain(wanted[n_asking].hash()));
        }
        table.find(wanted, n_asking, found);
        for (std::size_t i = 0; i < n_asking; ++i) own[asking[i]] = found[i];
      }
    }
  });
  return next;
}

inline Buffer<std::uint32_t> find_neighbours(const PlaneKeys& vertex_keys, const PlaneTable& table) {
  constexpr std::size_t at_once = 1 << 14;
  const std::size_t m = table.size();
  const std::uint32_t* places = table.keys();
  Buffer<std::uint32_t> next(static_cast<std::size_t>(PlaneKeys::n_dims + 1) * m);
  parallel_for(m, at_once, [&](std::size_t begin, std::size_t end) {
    for (int axis = 0; axis <= PlaneKeys::n_dims; ++axis) {
      const std::uint32_t step = vertex_keys.step(axis);
      std::uint32_t* own = next.data() + static_cast<std::size_t>(axis) * m;
      for (std::size_t v = begin; v < end; ++v) own[v] = table.find(places[v] + step);
    }
  });
  return next;
}

// List the chains along one axis, block by block. block_of may be null for a single block.
inline BlurGroup::Axis link_axis(const std::uint32_t* next, std::size_t m, const std::uint32_t* block_of,
                                 std::size_t n_blocks, const FirstException& failure) {
  const auto between = [&failure] { failure.pause(); };
  constexpr std::uint32_t absent = VertexTable<1>::absent;
  Buffer<std::uint8_t> has_previous(m + 1);  // the last one stands for all that are not there
  std::memset(has_previous.data(), 0, m + 1);
  in_pieces(m, between, [&](std::size_t begin, std::size_t end) {
    for (std::size_t v = begin; v < end; ++v) has_previous[std::min<std::size_t>(next[v], m)] = 1;
  });
  BlurGroup::Axis out;
  out.start = Buffer<std::uint32_t>(n_blocks + 1);
  std::fill(out.start.data(), out.start.data() + n_blocks + 1, 0U);
  const auto block = [block_of](std::size_t v) { return block_of == nullptr ? 0U : block_of[v]; };
  Buffer<std::uint32_t> heads(m + 1);
  std::size_t n_heads = 0;
  in_pieces(m, between, [&](std::size_t begin, std::size_t end) {
    for (std::size_t v = begin; v < end; ++v) {
      // A vertex without neighbours does not change. No branches: they could not be predicted.
      const bool is_linked = next[v] != absent;
      const bool is_reached = has_previous[v] != 0;
      out.start[block(v) + 1] += static_cast<std::uint32_t>(is_linked | is_reached);
      heads[n_heads] = static_cast<std::uint32_t>(v);
      n_heads += static_cast<std::size_t>(is_linked & !is_reached);
    }
  });
  for (std::size_t b = 0; b < n_blocks; ++b) out.start[b + 1] += out.start[b];
  out.chain = Buffer<std::uint32_t>(out.start[n_blocks]);
  Buffer<std::uint32_t> cursor(n_blocks);
  std::copy(out.start.data(), out.start.data() + n_blocks, cursor.data());
  in_pieces(n_heads, between, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::uint32_t v = heads[i];
      std::uint32_t& cursor_of_block = cursor[block(v)];
      std::uint32_t at = cursor_of_block;
      out.chain[at++] = v | chain_head;
      for (std::uint32_t u = next[v]; u != absent; u = next[u]) out.chain[at++] = u;
      cursor_of_block = at;
    }
  });
  return out;
}

// Chains along all axes, in the order in which the axes are blurred.
template <class Keys>
std::vector<BlurGroup> link_chains(int n_dims, const Keys& vertex_keys, const typename Keys::Table& table) {
  const int n_axes = n_dims + 1;
  // Three axes at a time: more of them reach too many vertices, fewer read the vertices more often.
  const int n_groups = n_axes <= 3 ? n_axes : (n_axes + 2) / 3;
  const auto first_axis = [&](std::size_t group) { return n_axes * static_cast<int>(group) / n_groups; };
  const std::size_t m = table.size();
  std::vector<BlurGroup> groups(static_cast<std::size_t>(n_groups));
  std::vector<Buffer<std::uint32_t>> block_of(groups.size());

  FirstException failure;
  parallel_for(groups.size(), 1, [&](std::size_t begin, std::size_t end) {
    failure.guard([&] {
      for (std::size_t g = begin; g < end; ++g) {
        const int n_own = first_axis(g + 1) - first_axis(g);
        groups[g].axes.resize(static_cast<std::size_t>(n_own));
        groups[g].n_blocks = 1;
        if constexpr (!std::is_same_v<Keys, PlaneKeys>) {
          if (n_own == 1) continue;
          block_of[g] = Buffer<std::uint32_t>(m);
          groups[g].n_blocks =
              assign_blocks(first_axis(g), first_axis(g + 1), vertex_keys.layout(), table, failure, block_of[g].data());
        }
      }
    });
  });
  failure.rethrow();
  const Buffer<std::uint32_t> next = find_neighbours(vertex_keys, table);
  parallel_for(static_cast<std::size_t>(n_axes), 1, [&](std::size_t begin, std::size_t end) {
    failure.guard([&] {
      for (std::size_t axis = begin; axis < end; ++axis) {
        std::size_t g = 0;
        while (first_axis(g + 1) <= static_cast<int>(axis)) ++g;
        BlurGroup& group = groups[g];
        group.axes[axis - static_cast<std::size_t>(first_axis(g))] =
            link_axis(next.data() + axis * m, m, block_of[g].data(), group.n_blocks, failure);
        if (group.axes.size() == 1) cut_between_chains(group);
      }
    });
  });
  failure.rethrow();
  return groups;
}

}  // namespace crfasrnn
