#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <mutex>

#include "lattice.hpp"
#include "parallel.hpp"
#include "vertex_table.hpp"

namespace crfasrnn {
namespace {

// Points are numbered in chunks, each with a table of its own, which are merged in order: a vertex
// gets its number from the first point that touches it, whatever the number of chunks.
constexpr std::size_t smallest_chunk = 1 << 14;
// Points whose keys are computed, and whose table slots are prefetched, before the first look-up.
constexpr std::size_t batch = 4 * simplex_lanes;

struct Scales {
  float of[max_dims];

  // Scaling that makes the lattice's own blur a unit Gaussian (p. 6 in Adams et al. 2010).
  explicit Scales(int d) {
    const auto gain = static_cast<float>(std::sqrt(2.0 / 3.0) * (d + 1));
    for (int i = 0; i < d; ++i) {
      of[i] = static_cast<float>(1.0 / std::sqrt(static_cast<double>((i + 1) * (i + 2))) * gain);
    }
  }
};

std::size_t chunk_size(std::size_t n_points) {
  const auto threads = static_cast<std::size_t>(n_threads());
  return std::max((n_points + threads - 1) / threads, smallest_chunk);
}

// Exceptions (only std::bad_alloc) must not leave a pool thread: the first is kept and thrown later.
class FirstException {
 public:
  template <class Body>
  void guard(Body&& body) noexcept {
    try {
      body();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!first_) first_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr first_;
};

Bounds measure_all(const float* features, std::size_t n_points, int d, const Scales& scales) {
  Bounds total{};
  total.usable = true;
  for (int j = 0; j <= d; ++j) {
    total.low[j] = std::numeric_limits<float>::max();
    total.high[j] = std::numeric_limits<float>::lowest();
  }
  const Bounds empty = total;
  std::mutex mutex;
  parallel_for(n_points, smallest_chunk, [&](std::size_t begin, std::size_t end) {
    Bounds own = empty;
    kernels().measure(features, begin, end, d, scales.of, coordinate_limit, own);
    const std::lock_guard lock(mutex);
    total.usable = total.usable && own.usable;
    for (int j = 0; j <= d; ++j) {
      total.low[j] = std::min(total.low[j], own.low[j]);
      total.high[j] = std::max(total.high[j], own.high[j]);
    }
  });
  return total;
}

// Number the corners of the points in [begin, end) with the numbers of `table`.
template <int Words>
void number_chunk(const float* features, std::size_t begin, std::size_t end, const KeyLayout& layout,
                  const Scales& scales, VertexTable<Words>& table, std::uint32_t* vertex_of, float* weight_of) {
  const int d = layout.n_dims;
  const auto corners = static_cast<std::size_t>(d + 1);
  const Kernels& k = kernels();
  Key<Words> step[max_dims + 1];
  for (int j = 0; j <= d; ++j) step[j] = layout.template step<Words>(j);

  SimplexBlock block;
  Buffer<Key<Words>> keys((batch + 1) * corners);
  Buffer<std::uint64_t> hashes(batch * corners);
  // The keys and numbers of the point before: neighbours in an image share most of their corners.
  Key<Words>* last_keys = keys.data();

  for (std::size_t first = begin; first < end; first += batch) {
    const std::size_t count = std::min(batch, end - first);
    for (std::size_t b = 0; b < count; b += simplex_lanes) {
      const int n = static_cast<int>(std::min<std::size_t>(simplex_lanes, count - b));
      k.simplices(features + (first + b) * static_cast<std::size_t>(d), n, d, scales.of, block);
      for (int l = 0; l < n; ++l) {
        const std::size_t q = b + static_cast<std::size_t>(l);
        Key<Words> key{};
        for (int j = 0; j < d; ++j) {
          key.words[layout.word[j]] += static_cast<std::uint64_t>(block.origin[j][l] - layout.low[j])
                                       << layout.shift[j];
        }
        Key<Words>* own = keys.data() + (q + 1) * corners;
        float* weight = weight_of + (first + q) * corners;
        // From the corner of remainder k to the next one is a step along one axis.
        for (int c = 0; c <= d; ++c) {
          own[c] = key;
          weight[c] = block.barycentric[c][l];
          key = key + step[block.order[d - c][l]];
        }
        for (std::size_t c = 0; c < corners; ++c) {
          const std::uint64_t hash = own[c].hash();
          hashes[q * corners + c] = hash;
          table.prefetch(hash);
        }
      }
    }
    for (std::size_t q = 0; q < count; ++q) {
      const Key<Words>* own = keys.data() + (q + 1) * corners;
      std::uint32_t* ids = vertex_of + (first + q) * corners;
      const bool has_last = first + q != begin;
      for (std::size_t c = 0; c < corners; ++c) {
        ids[c] = has_last && own[c] == own[c - corners] ? ids[c - corners]
                                                        : table.find_or_add(own[c], hashes[q * corners + c]);
      }
    }
    for (std::size_t c = 0; c < corners; ++c) last_keys[c] = keys[count * corners + c];
  }
}

}  // namespace

template <int Words>
void Lattice::number_vertices(const float* features, const KeyLayout& layout) {
  const Scales scales(n_dims_);
  const auto corners = static_cast<std::size_t>(n_corners());
  const std::size_t chunk = chunk_size(n_points_);
  const std::size_t n_chunks = (n_points_ + chunk - 1) / chunk;

  std::vector<std::unique_ptr<VertexTable<Words>>> tables(n_chunks);
  FirstException failure;
  parallel_for(n_chunks, 1, [&](std::size_t first, std::size_t last) {
    failure.guard([&] {
      for (std::size_t i = first; i < last; ++i) {
        const std::size_t begin = i * chunk;
        const std::size_t end = std::min(n_points_, begin + chunk);
        tables[i] = std::make_unique<VertexTable<Words>>(end - begin);
        number_chunk<Words>(features, begin, end, layout, scales, *tables[i], vertex_of_.data(), weight_of_.data());
      }
    });
  });
  failure.rethrow();

  // The first table becomes the table of all; the others' numbers are translated into its.
  VertexTable<Words>& table = *tables[0];
  std::vector<Buffer<std::uint32_t>> translation(n_chunks);
  for (std::size_t i = 1; i < n_chunks; ++i) {
    const std::size_t size = tables[i]->size();
    translation[i] = Buffer<std::uint32_t>(size);
    const Key<Words>* keys = tables[i]->keys();
    constexpr std::size_t ahead = 16;
    for (std::size_t v = 0; v < size; ++v) {
      if (v + ahead < size) table.prefetch(keys[v + ahead].hash());
      translation[i][v] = table.find_or_add(keys[v], keys[v].hash());
    }
    tables[i].reset();
  }
  parallel_for(n_chunks, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t i = std::max<std::size_t>(first, 1); i < last; ++i) {
      const std::size_t end = std::min(n_points_, (i + 1) * chunk) * corners;
      for (std::size_t e = i * chunk * corners; e < end; ++e) vertex_of_[e] = translation[i][vertex_of_[e]];
    }
  });

  n_vertices_ = table.size();
  link_chains<Words>(layout, table);
}

// Put the vertices into blocks that are closed under steps along the axes of a group. Such steps
// change all coordinates outside of the group alike, so the differences of those tell apart what
// cannot be reached; the hash may throw some of it together, which does no harm.
template <int Words>
std::size_t assign_blocks(int first_axis, int last_axis, const KeyLayout& layout, const VertexTable<Words>& table,
                          Buffer<std::uint32_t>& block_of) {
  constexpr std::uint32_t smallest_block = 256;
  const std::size_t m = table.size();
  VertexTable<1> cosets(m / 64 + 1);
  std::vector<std::uint32_t> sizes;
  std::int32_t coordinates[max_dims + 1];
  for (std::size_t v = 0; v < m; ++v) {
    layout.template unpack<Words>(table.keys()[v], coordinates);
    Key<1> coset{};
    std::int32_t before = 0;
    bool has_before = false;
    for (int j = 0; j <= layout.n_dims; ++j) {
      if (j >= first_axis && j < last_axis) continue;
      if (has_before) {
        coset.words[0] = (coset.words[0] ^ static_cast<std::uint32_t>(coordinates[j] - before)) * 0xD6E8FEB86659FD93U;
        coset.words[0] ^= coset.words[0] >> 32;
      }
      before = coordinates[j];
      has_before = true;
    }
    const std::uint32_t id = cosets.find_or_add(coset, coset.hash());
    if (id == sizes.size()) sizes.push_back(0);
    ++sizes[id];
    block_of[v] = id;
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
  for (std::size_t v = 0; v < m; ++v) block_of[v] = sizes[block_of[v]];
  return static_cast<std::size_t>(block) + (filled != 0 ? 1 : 0);
}

// Where only one axis is left outside a group, every vertex can be reached from every other. Blocks
// of a single axis may then be cut at the end of any chain.
constexpr std::size_t nodes_per_cut = 1 << 11;

void cut_between_chains(BlurGroup& group) {
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

template <int Words>
void Lattice::link_chains(const KeyLayout& layout, const VertexTable<Words>& table) {
  const int n_axes = n_corners();
  // Three axes at a time: more of them reach too many vertices, fewer read the vertices more often.
  const int n_groups = n_axes <= 3 ? n_axes : (n_axes + 2) / 3;
  groups_.resize(static_cast<std::size_t>(n_groups));
  VertexFilter filter(n_vertices_);
  for (std::size_t v = 0; v < n_vertices_; ++v) filter.add(table.keys()[v].hash());
  FirstException failure;
  parallel_for(groups_.size(), 1, [&](std::size_t first, std::size_t last) {
    failure.guard([&] {
      for (std::size_t g = first; g < last; ++g) {
        const auto index = static_cast<int>(g);
        const int first_axis = n_axes * index / n_groups;
        const int last_axis = n_axes * (index + 1) / n_groups;
        BlurGroup& group = groups_[g];
        Buffer<std::uint32_t> block_of(n_vertices_);
        if (last_axis - first_axis > 1) {
          group.n_blocks = assign_blocks<Words>(first_axis, last_axis, layout, table, block_of);
        } else {
          group.n_blocks = 1;
          std::fill(block_of.data(), block_of.data() + n_vertices_, 0U);
        }
        for (int axis = first_axis; axis < last_axis; ++axis) {
          group.axes.push_back(link_axis<Words>(axis, layout, table, filter, block_of, group.n_blocks));
        }
        if (group.axes.size() == 1) cut_between_chains(group);
      }
    });
  });
  failure.rethrow();
}

template <int Words>
BlurGroup::Axis Lattice::link_axis(int axis, const KeyLayout& layout, const VertexTable<Words>& table,
                                   const VertexFilter& filter, const Buffer<std::uint32_t>& block_of,
                                   std::size_t n_blocks) const {
  constexpr std::uint32_t absent = VertexTable<Words>::absent;
  const std::size_t m = n_vertices_;
  const Key<Words> step = layout.template step<Words>(axis);
  const Key<Words>* keys = table.keys();
  Buffer<std::uint32_t> next(m);
  Buffer<std::uint8_t> has_previous(m);
  std::memset(has_previous.data(), 0, m);
  std::uint32_t candidates[batch];
  for (std::size_t first = 0; first < m; first += batch) {
    // About half of all neighbours do not exist, and the filter knows that of nearly all of them.
    const std::size_t last = std::min(first + batch, m);
    std::size_t n_candidates = 0;
    for (std::size_t v = first; v < last; ++v) {
      const std::uint64_t hash = (keys[v] + step).hash();
      next[v] = absent;
      candidates[n_candidates] = static_cast<std::uint32_t>(v);
      if (filter.may_contain(hash)) {
        table.prefetch(hash);
        ++n_candidates;
      }
    }
    for (std::size_t i = 0; i < n_candidates; ++i) {
      const std::uint32_t v = candidates[i];
      const Key<Words> key = keys[v] + step;
      next[v] = table.find(key, key.hash());
      if (next[v] != absent) has_previous[next[v]] = 1;
    }
  }
  BlurGroup::Axis out;
  out.start = Buffer<std::uint32_t>(n_blocks + 1);
  std::fill(out.start.data(), out.start.data() + n_blocks + 1, 0U);
  for (std::size_t v = 0; v < m; ++v) {
    // A vertex without neighbours does not change.
    if (next[v] != absent || has_previous[v] != 0) ++out.start[block_of[v] + 1];
  }
  for (std::size_t b = 0; b < n_blocks; ++b) out.start[b + 1] += out.start[b];
  out.chain = Buffer<std::uint32_t>(out.start[n_blocks]);
  Buffer<std::uint32_t> cursor(n_blocks);
  std::copy(out.start.data(), out.start.data() + n_blocks, cursor.data());
  for (std::size_t v = 0; v < m; ++v) {
    if (has_previous[v] != 0 || next[v] == absent) continue;
    std::uint32_t& at = cursor[block_of[v]];
    out.chain[at++] = static_cast<std::uint32_t>(v) | chain_head;
    for (std::uint32_t u = next[v]; u != absent; u = next[u]) out.chain[at++] = u;
  }
  return out;
}

// List, for every vertex, the points around it in ascending order.
void Lattice::transpose_corners(std::size_t n_chunks) {
  const auto corners = static_cast<std::size_t>(n_corners());
  const std::size_t m = n_vertices_;
  const std::size_t chunk = (n_points_ + n_chunks - 1) / n_chunks;
  splat_start_ = Buffer<std::uint32_t>(m + 1);
  splat_entries_ = Buffer<SplatEntry>(n_points_ * corners);

  // cursor[i][v]: where chunk i writes its next entry of vertex v.
  Buffer<std::uint32_t> cursor(n_chunks * m);
  parallel_for(n_chunks, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i) {
      std::uint32_t* own = cursor.data() + i * m;
      std::memset(own, 0, m * sizeof(std::uint32_t));
      const std::size_t end = std::min(n_points_, (i + 1) * chunk) * corners;
      for (std::size_t e = std::min(n_points_, i * chunk) * corners; e < end; ++e) ++own[vertex_of_[e]];
    }
  });
  std::uint32_t total = 0;
  for (std::size_t v = 0; v < m; ++v) {
    splat_start_[v] = total;
    for (std::size_t i = 0; i < n_chunks; ++i) {
      std::uint32_t& slot = cursor[i * m + v];
      const std::uint32_t count = slot;
      slot = total;
      total += count;
    }
  }
  splat_start_[m] = total;
  parallel_for(n_chunks, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i) {
      std::uint32_t* own = cursor.data() + i * m;
      const std::size_t end = std::min(n_points_, (i + 1) * chunk);
      for (std::size_t p = i * chunk; p < end; ++p) {
        for (std::size_t e = p * corners; e < (p + 1) * corners; ++e) {
          splat_entries_[own[vertex_of_[e]]++] = {static_cast<std::uint32_t>(p), weight_of_[e]};
        }
      }
    }
  });
}

std::optional<BuildError> Lattice::build(std::span<const float> features, std::size_t n_points, int n_dims,
                                         std::unique_ptr<Lattice>& result) {
  if (n_dims < 1 || n_dims > max_dims) return BuildError::bad_shape;
  if (n_points > (std::size_t{1} << 31) / static_cast<std::size_t>(n_dims + 1) - 1) return BuildError::too_many_points;
  if (features.size() != n_points * static_cast<std::size_t>(n_dims)) return BuildError::bad_shape;

  std::unique_ptr<Lattice> lattice(new Lattice);
  lattice->n_points_ = n_points;
  lattice->n_dims_ = n_dims;
  if (n_points != 0) {
    const Bounds bounds = measure_all(features.data(), n_points, n_dims, Scales(n_dims));
    if (!bounds.usable) {
      const bool finite = std::all_of(features.begin(), features.end(), [](float x) { return std::isfinite(x); });
      return finite ? BuildError::out_of_range : BuildError::non_finite;
    }
    const std::size_t n_entries = n_points * static_cast<std::size_t>(n_dims + 1);
    lattice->vertex_of_ = Buffer<std::uint32_t>(n_entries);
    lattice->weight_of_ = Buffer<float>(n_entries);
    const KeyLayout layout(bounds, n_dims);
    switch (std::bit_ceil(static_cast<unsigned>(layout.n_words))) {
      case 1: lattice->number_vertices<1>(features.data(), layout); break;
      case 2: lattice->number_vertices<2>(features.data(), layout); break;
      case 4: lattice->number_vertices<4>(features.data(), layout); break;
      default: lattice->number_vertices<8>(features.data(), layout); break;
    }
    const std::size_t chunk = chunk_size(n_points);
    lattice->transpose_corners((n_points + chunk - 1) / chunk);
  } else {
    lattice->splat_start_ = Buffer<std::uint32_t>(1);
    lattice->splat_start_[0] = 0;
  }
  result = std::move(lattice);
  return std::nullopt;
}

float Lattice::slice_gain() const { return 1.0F / (1.0F + std::ldexp(1.0F, -n_dims_)); }

std::size_t Lattice::n_bytes() const {
  std::size_t total =
      vertex_of_.n_bytes() + weight_of_.n_bytes() + splat_start_.n_bytes() + splat_entries_.n_bytes();
  for (const BlurGroup& group : groups_) {
    for (const BlurGroup::Axis& axis : group.axes) total += axis.chain.n_bytes() + axis.start.n_bytes();
  }
  return total;
}

void Lattice::splat(int width, const SplatEntry* entries, const ValueRows& values, const LabelMap& map,
                    float* vertices) const {
  // Ranges of equal work, not of equally many vertices: flat regions have vertices with thousands of
  // points. A range of entries belongs to the vertices that start in it.
  const std::size_t n_entries = n_points_ * static_cast<std::size_t>(n_corners());
  constexpr std::size_t grain = 1 << 14;
  const std::uint32_t* start = splat_start_.data();
  const std::uint32_t* stop = start + n_vertices_;
  parallel_for(n_entries, grain, [&](std::size_t begin, std::size_t end) {
    const auto first = static_cast<std::size_t>(std::lower_bound(start, stop, begin) - start);
    const auto last = static_cast<std::size_t>(std::lower_bound(start, stop, end) - start);
    kernels().splat(width, start, entries, values, vertices, first, last);
    if (map.kind != LabelMap::Kind::identity) kernels().map_labels(width, map, vertices, vertices, first, last);
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

}  // namespace crfasrnn
