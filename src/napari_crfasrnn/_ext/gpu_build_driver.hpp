// The order of the steps of building, on any device, for lattice_cuda.cu and lattice_items.cpp to instantiate.
//
// A Device runs items: for_each(rows, packs, item) calls item(row, pack) for all of them, in any
// order; blocks(n, x, y, n_scratch, item) calls item.phase(k, block, x, y, local, scratch) for the
// x * y threads of n blocks, which all finish a phase before the next begins. for_each_two and blocks_two do
// that for two items in one launch.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "gpu_build_items.hpp"
#include "lattice_gpu.hpp"

namespace crfasrnn::gpu {

// Cuts one block of memory into arrays; on no block at all it only counts.
class Carver {
 public:
  Carver() = default;
  explicit Carver(Memory memory) : data_(memory.data), limit_(memory.n_bytes) {}

  template <class T>
  T* take(std::size_t size) {
    constexpr std::size_t alignment = 256;
    T* array = data_ != nullptr ? reinterpret_cast<T*>(data_ + used_) : nullptr;
    used_ += (size * sizeof(T) + alignment - 1) / alignment * alignment;
    return array;
  }
  std::size_t used() const { return used_; }
  void check() const {
    if (used_ > limit_) {
      throw std::invalid_argument("a block of " + std::to_string(limit_) + " bytes came where " +
                                  std::to_string(used_) + " are needed");
    }
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t limit_ = 0;
  std::size_t used_ = 0;
};

// Scaling that makes the lattice's own blur a unit Gaussian (p. 6 in Adams et al. 2010).
inline Scales unit_scales(int d) {
  Scales scales{};
  const auto gain = static_cast<float>(std::sqrt(2.0 / 3.0) * (d + 1));
  for (int i = 0; i < d; ++i) {
    scales.of[i] = static_cast<float>(1.0 / std::sqrt(static_cast<double>((i + 1) * (i + 2))) * gain);
  }
  return scales;
}

// Fields wide enough for every vertex and all its neighbours, the last coordinate in the lowest bits.
inline KeyLayout key_layout(const std::int32_t* low, const std::int32_t* high, int d, std::size_t n_points,
                            std::size_t n_groups) {
  KeyLayout layout{};
  layout.n_dims = d;
  layout.points_per_group = static_cast<std::uint32_t>(n_points / n_groups);
  // A corner lies within d + 1 of the rounded point, that within d + 1 of the point, and a
  // neighbour d further; one more d + 1 for good measure.
  const int margin = 4 * (d + 1);
  int word = 0;
  int used = 0;
  const auto place = [&](int width, int& own_word, int& own_shift) {
    if (used + width > 64) {
      ++word;
      used = 0;
    }
    own_word = word;
    own_shift = used;
    used += width;
    layout.bits[word] = used;
  };
  for (int j = d - 1; j >= 0; --j) {
    layout.low[j] = low[j] - margin;
    place(std::bit_width(static_cast<std::uint32_t>(high[j] + margin - layout.low[j])), layout.word[j], layout.shift[j]);
  }
  place(std::bit_width(n_groups - 1), layout.group_word, layout.group_shift);
  if (layout.group_shift == 64) layout.group_shift = 0;  // a single group has no bits, and its number is 0
  // Filled from the least significant word, which is the last.
  layout.n_words = word + 1;
  for (int j = 0; j < d; ++j) layout.word[j] = word - layout.word[j];
  layout.group_word = word - layout.group_word;
  std::reverse(layout.bits, layout.bits + layout.n_words);
  return layout;
}

// Call f.template operator()<D>() with d where code for it is compiled, else with 0.
template <class F>
void by_dims(int d, F&& f) {
  switch (d) {
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<3>();
    case 4: return f.template operator()<4>();
    case 5: return f.template operator()<5>();
    case 6: return f.template operator()<6>();
    default: return f.template operator()<0>();
  }
}

template <class Device>
GpuLattice<Device>::GpuLattice(std::size_t n_points, int n_dims, std::size_t n_groups)
    : n_points_(n_points), n_dims_(n_dims), n_groups_(n_groups) {
  if (n_dims < 1 || n_dims > max_dims) throw std::invalid_argument("features must be [N, d] with 1 <= d <= 16");
  if (n_points > (std::size_t{1} << 31) / static_cast<std::size_t>(n_dims + 1) - 1) {
    throw std::invalid_argument(
        "features have too many points: N * (d + 1) must stay below 2**31; split the image into tiles");
  }
  if (n_groups < 1 || n_points % n_groups != 0) {
    throw std::invalid_argument("features must have a multiple of n_groups points");
  }
}

template <class Device>
void GpuLattice<Device>::require(bool stage_reached) const {
  if (!stage_reached) throw std::invalid_argument("a lattice is built by measure, number and link, in this order");
}

namespace detail {
inline std::size_t n_measure_blocks(std::size_t n_points) {
  constexpr std::size_t threads = Measure<0>::n_threads;
  return std::min<std::size_t>((n_points + threads - 1) / threads, 256);
}
}  // namespace detail

template <class Device>
std::size_t GpuLattice<Device>::measure_bytes() const {
  return detail::n_measure_blocks(n_points_) * static_cast<std::size_t>(Measure<0>::row(n_corners())) *
         sizeof(std::int32_t);
}

template <class Device>
void GpuLattice<Device>::measure(const float* features, Memory scratch, const Where& where) {
  if (scratch.n_bytes < measure_bytes()) throw std::invalid_argument("measure needs a block of measure_bytes()");
  std::int32_t low[max_corners] = {};
  std::int32_t high[max_corners] = {};
  if (n_points_ != 0) {
    Device device(where);
    const auto row = static_cast<std::size_t>(Measure<0>::row(n_corners()));
    const std::size_t n_blocks = detail::n_measure_blocks(n_points_);
    const auto corners = static_cast<std::size_t>(n_corners());
    auto* found = reinterpret_cast<std::int32_t*>(scratch.data);
    by_dims(n_dims_, [&]<int D>() {
      constexpr int threads = Measure<D>::n_threads;
      const Measure<D> item{features, n_points_, n_dims_, unit_scales(n_dims_), n_blocks, found};
      device.blocks(n_blocks, threads, 1, row * threads, item);
    });
    std::vector<std::int32_t> rows(n_blocks * row);
    device.read(rows.data(), found, rows.size() * sizeof(std::int32_t));
    std::copy_n(rows.begin(), corners, low);
    std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(corners), corners, high);
    bool outside = false;
    bool not_finite = false;
    for (std::size_t b = 0; b < n_blocks; ++b) {
      const std::int32_t* own = rows.data() + b * row;
      for (std::size_t j = 0; j < corners; ++j) {
        low[j] = std::min(low[j], own[j]);
        high[j] = std::max(high[j], own[corners + j]);
      }
      outside = outside || own[2 * corners] != 0;
      not_finite = not_finite || own[2 * corners + 1] != 0;
    }
    if (not_finite) {
      throw std::invalid_argument("features must be finite, got NaN or infinity; replace or mask them first");
    }
    if (outside) {
      throw std::invalid_argument(
          "features are too large for float32 lattice coordinates (about 2**20 at most); "
          "divide them by larger widths or rescale the image");
    }
    layout_ = key_layout(low, high, n_dims_, n_points_, n_groups_);
    scratch_bytes_ = device.scratch_bytes(n_entries());
  }
  stage_ = Stage::measured;
}

template <class Device>
template <class C>
typename GpuLattice<Device>::Geometry GpuLattice<Device>::carve_geometry(C& carver) const {
  Geometry g{};
  g.vertex_of = carver.template take<std::uint32_t>(n_entries());
  g.weight_of = carver.template take<float>(n_entries());
  g.entries = carver.template take<Entry>(n_entries());
  return g;
}

template <class Device>
template <class C>
typename GpuLattice<Device>::Temporary GpuLattice<Device>::carve_temporary(C& carver) const {
  const std::size_t e = n_entries();
  const auto n_words = static_cast<std::size_t>(layout_.n_words);
  Temporary t{};
  t.words = carver.template take<std::uint64_t>(n_words * e);
  t.keys[0] = n_words == 1 ? t.words : carver.template take<std::uint64_t>(e);
  t.keys[1] = carver.template take<std::uint64_t>(e);
  t.order[0] = carver.template take<std::uint32_t>(e);
  t.order[1] = carver.template take<std::uint32_t>(e);
  t.wide_keys = n_words == 1 ? nullptr : carver.template take<std::uint64_t>(n_words * e);
  t.start = carver.template take<std::uint32_t>(e + 1);
  t.scratch = {carver.template take<std::byte>(scratch_bytes_), scratch_bytes_};
  return t;
}

template <class Device>
template <class C>
typename GpuLattice<Device>::Tables GpuLattice<Device>::carve_tables(C& carver) const {
  Tables t{};
  t.segment_begin = carver.template take<std::uint32_t>(n_segments_ + 1);
  t.segment_target = carver.template take<std::uint32_t>(n_segments_);
  t.long_vertices = carver.template take<LongVertex>(n_long_);
  t.links = carver.template take<Link>(static_cast<std::size_t>(n_corners()) * n_vertices_);
  return t;
}

template <class Device>
std::size_t GpuLattice<Device>::geometry_bytes() const {
  Carver carver;
  carve_geometry(carver);
  return carver.used();
}

template <class Device>
std::size_t GpuLattice<Device>::temporary_bytes() const {
  require(stage_ != Stage::empty);
  if (n_points_ == 0) return 0;
  Carver carver;
  carve_temporary(carver);
  return carver.used();
}

template <class Device>
std::size_t GpuLattice<Device>::table_bytes() const {
  require(stage_ == Stage::numbered || stage_ == Stage::linked);
  Carver carver;
  carve_tables(carver);
  return carver.used();
}

// Sorting the keys of all corners brings the entries of a vertex together, in the order of their
// points: numbers, splat lists and their deterministic order come out of one sort and one scan.
template <class Device>
void GpuLattice<Device>::number(const float* features, Memory geometry, Memory temporary, const Where& where) {
  require(stage_ == Stage::measured);
  Carver kept(geometry);
  geometry_ = carve_geometry(kept);
  kept.check();
  stage_ = Stage::numbered;
  if (n_points_ == 0) return;
  Carver carver(temporary);
  const Temporary t = carve_temporary(carver);
  carver.check();

  Device device(where);
  const std::size_t e = n_entries();
  const int n_words = layout_.n_words;
  by_dims(n_dims_, [&]<int D>() {
    device.for_each(n_points_, 1,
                    FindSimplex<D>{features, unit_scales(n_dims_), layout_, e, t.words, geometry_.weight_of});
  });
  device.for_each(e, 1, Iota{t.order[0]});
  int keys_in = 0;
  int order_in = 0;
  for (int w = n_words - 1; w >= 0; --w) {
    if (layout_.bits[w] == 0) continue;
    if (n_words > 1) {
      keys_in = 0;
      device.for_each(e, 1, GatherWord{t.words + static_cast<std::size_t>(w) * e, t.order[order_in], t.keys[0]});
    }
    std::uint64_t* keys[2] = {t.keys[keys_in], t.keys[1 - keys_in]};
    std::uint32_t* order[2] = {t.order[order_in], t.order[1 - order_in]};
    const int flips = device.sort_pairs(keys, order, e, layout_.bits[w], t.scratch);
    keys_in ^= flips;
    order_in ^= flips;
  }
  const std::uint64_t* sorted_keys = t.keys[keys_in];
  std::uint32_t* sorted_order = t.order[order_in];
  std::uint32_t* number = t.order[1 - order_in];  // the sort is done with it
  std::uint64_t* vertex_keys = n_words == 1 ? t.keys[1 - keys_in] : t.wide_keys;
  const SortedKeys keys{n_words, e, sorted_keys, t.words, sorted_order};
  device.for_each(e, 1, MarkHeads{keys, number});
  device.inclusive_sum(number, e, t.scratch);
  device.for_each(e, 1,
                  PlaceEntries{keys, number, geometry_.weight_of, static_cast<std::uint32_t>(n_corners()),
                               geometry_.vertex_of, geometry_.entries, t.start, vertex_keys});
  std::uint64_t* segment = t.keys[keys_in];  // the keys are in vertex_keys now
  device.for_each(e, 1, MarkSegments{number, t.start, segment});
  device.inclusive_sum(segment, e, t.scratch);

  std::uint32_t n_vertices = 0;
  std::uint64_t n_segments = 0;
  device.read_two(&n_vertices, number + (e - 1), sizeof n_vertices, &n_segments, segment + (e - 1), sizeof n_segments);
  n_vertices_ = n_vertices;
  n_segments_ = n_segments & 0xFFFFFFFFU;
  n_long_ = n_segments >> 32;
  numbered_ = {number, t.start, segment, vertex_keys};
}

template <class Device>
void GpuLattice<Device>::link(Memory tables, const Where& where) {
  require(stage_ == Stage::numbered);
  Carver carver(tables);
  tables_ = carve_tables(carver);
  carver.check();
  stage_ = Stage::linked;
  if (n_points_ == 0) return;
  Device device(where);
  const std::size_t e = n_entries();
  const auto corners = static_cast<std::size_t>(n_corners());
  device.for_each(e, 1,
                  PlaceSegments{numbered_.number, numbered_.start, numbered_.segment, e, tables_.segment_begin,
                                tables_.segment_target, tables_.long_vertices});
  device.fill(tables_.links, 0xFF, corners * n_vertices_ * sizeof(Link));
  const auto link_neighbours = [&]<int Words>() {
    device.for_each(n_vertices_, n_corners(),
                    LinkNeighbours<Words>{layout_, static_cast<std::uint32_t>(n_vertices_), numbered_.vertex_keys,
                                          tables_.links});
  };
  if (layout_.n_words == 1) {
    link_neighbours.template operator()<1>();
  } else {
    link_neighbours.template operator()<0>();
  }
  numbered_ = {};
}

}  // namespace crfasrnn::gpu
