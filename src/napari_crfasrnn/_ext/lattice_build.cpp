// How a lattice comes to be: simplices of all points, numbers of their vertices, and for every vertex
// the points around it.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <mutex>

#include "blur_chains.hpp"
#include "lattice.hpp"
#include "parallel.hpp"
#include "point_source.hpp"
#include "vertex_table.hpp"

namespace crfasrnn {
namespace {

// Points are numbered in runs of this many: few enough for the table of a run to stay in the second-level
// cache, enough for most vertices of an image to be met by one run or two.
constexpr std::size_t run_points = 4096;

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

Bounds measure_all(const PointSource& points, const Scales& scales) {
  const int d = points.n_dims();
  Bounds total{};
  total.usable = true;
  for (int j = 0; j <= d; ++j) {
    total.low[j] = std::numeric_limits<float>::max();
    total.high[j] = std::numeric_limits<float>::lowest();
  }
  const Bounds empty = total;
  std::mutex mutex;
  parallel_for(points.n_points(), run_points, [&](std::size_t begin, std::size_t end) {
    Bounds own = empty;
    FeatureBlock block;
    for (std::size_t p = begin; p < end; p += block_points) {
      points.read(p, std::min(block_points, end - p), block);
      kernels().measure(block, d, scales.of, coordinate_limit, own);
    }
    const std::lock_guard lock(mutex);
    total.usable = total.usable && own.usable;
    for (int j = 0; j <= d; ++j) {
      total.low[j] = std::min(total.low[j], own.low[j]);
      total.high[j] = std::max(total.high[j], own.high[j]);
    }
  });
  return total;
}

bool all_finite(const PointSource& points) {
  FeatureBlock block;
  for (std::size_t p = 0; p < points.n_points(); p += block_points) {
    points.read(p, std::min(block_points, points.n_points() - p), block);
    for (int j = 0; j < points.n_dims(); ++j) {
      if (!std::all_of(block.of[j], block.of[j] + block_points, [](float x) { return std::isfinite(x); })) return false;
    }
  }
  return true;
}

// The vertices that the points of a run touch, in the order in which they do.
template <int Words>
struct Run {
  Buffer<Key<Words>> keys;
  Buffer<std::uint32_t> n_entries;  // how many corners fall on each; later where the next one is written
  Buffer<std::uint32_t> numbers;    // among the vertices of all runs
};

// Number the corners of the points in [begin, end) in the order in which they come. D is their dimension, or
// 0 for any.
template <int Words, int D>
Run<Words> number_run(const PointSource& points, std::size_t begin, std::size_t end, const KeyLayout& layout,
                      const Scales& scales, std::uint32_t* vertex_of, float* weight_of) {
  const int d = D > 0 ? D : layout.n_dims;
  const auto corners = static_cast<std::size_t>(d + 1);
  Key<Words> step[max_dims + 1];
  for (int j = 0; j <= d; ++j) step[j] = layout.template step<Words>(j);
  VertexTable<Words> table(2 * (end - begin));
  FeatureBlock features;
  SimplexBlock simplices;
  std::array<Key<Words>, simplex_lanes*(D > 0 ? D + 1 : max_dims + 1)> keys;
  for (std::size_t first = begin; first < end; first += block_points) {
    const std::size_t count = std::min(block_points, end - first);
    points.read(first, count, features);
    for (std::size_t b = 0; b < count; b += simplex_lanes) {
      kernels().simplices(features, b, d, scales.of, simplices);
      const std::size_t n = std::min<std::size_t>(simplex_lanes, count - b);
      for (std::size_t l = 0; l < n; ++l) {
        Key<Words> key{};
        for (int j = 0; j < d; ++j) {
          key.words[layout.word[j]] += static_cast<std::uint64_t>(simplices.origin[j][l] - layout.low[j])
                                       << layout.shift[j];
        }
        // From the corner of remainder c to the next one is a step along one axis.
        Key<Words>* own = keys.data() + l * corners;
        float* weight = weight_of + (first + b + l) * corners;
        for (int c = 0; c <= d; ++c) {
          own[c] = key;
          weight[c] = simplices.barycentric[c][l];
          key = key + step[simplices.order[d - c][l]];
        }
      }
      table.find_or_add(keys.data(), n * corners, vertex_of + (first + b) * corners);
    }
  }
  Run<Words> run{Buffer<Key<Words>>(table.size()), Buffer<std::uint32_t>(table.size()), {}};
  std::copy_n(table.keys(), table.size(), run.keys.data());
  std::fill_n(run.n_entries.data(), table.size(), 0U);
  for (std::size_t e = begin * corners; e < end * corners; ++e) ++run.n_entries[vertex_of[e]];
  return run;
}

template <int Words>
Run<Words> number_run(const PointSource& points, std::size_t begin, std::size_t end, const KeyLayout& layout,
                      const Scales& scales, std::uint32_t* vertex_of, float* weight_of) {
  if constexpr (Words == 1) {
    // Images and grey volumes, with loop bounds that the compiler knows.
    switch (layout.n_dims) {
      case 2: return number_run<1, 2>(points, begin, end, layout, scales, vertex_of, weight_of);
      case 3: return number_run<1, 3>(points, begin, end, layout, scales, vertex_of, weight_of);
      case 4: return number_run<1, 4>(points, begin, end, layout, scales, vertex_of, weight_of);
      case 5: return number_run<1, 5>(points, begin, end, layout, scales, vertex_of, weight_of);
      default: break;
    }
  }
  return number_run<Words, 0>(points, begin, end, layout, scales, vertex_of, weight_of);
}

}  // namespace

template <int Words>
void Lattice::number_vertices(const PointSource& points, const KeyLayout& layout) {
  const Scales scales(n_dims_);
  const auto corners = static_cast<std::size_t>(n_corners());
  const std::size_t n_runs = (n_points_ + run_points - 1) / run_points;

  std::vector<Run<Words>> runs(n_runs);
  FirstException failure;
  parallel_for(n_points_, run_points, [&](std::size_t begin, std::size_t end) {
    failure.guard([&] {
      runs[begin / run_points] =
          number_run<Words>(points, begin, end, layout, scales, vertex_of_.data(), weight_of_.data());
    });
  });
  failure.rethrow();

  // The runs' vertices get their final numbers in the order of the runs, which is that of the points.
  std::size_t n_found = 0;
  for (const Run<Words>& run : runs) n_found += run.keys.size();
  VertexTable<Words> table(n_found / 2);
  Buffer<std::uint32_t> n_entries(n_found);  // of each vertex, in the runs so far
  for (Run<Words>& run : runs) {
    const std::size_t size = run.keys.size();
    run.numbers = Buffer<std::uint32_t>(size);
    for (std::size_t first = 0; first < size; first += batch) {
      const std::size_t count = std::min(batch, size - first);
      const std::size_t n_before = table.size();
      table.find_or_add(run.keys.data() + first, count, run.numbers.data() + first);
      std::fill(n_entries.data() + n_before, n_entries.data() + table.size(), 0U);
      for (std::size_t v = first; v < first + count; ++v) {
        const std::uint32_t n_own = run.n_entries[v];
        run.n_entries[v] = n_entries[run.numbers[v]];
        n_entries[run.numbers[v]] += n_own;
      }
    }
    run.keys.clear();
  }
  n_vertices_ = table.size();
  splat_start_ = Buffer<std::uint32_t>(n_vertices_ + 1);
  std::uint32_t total = 0;
  for (std::size_t v = 0; v < n_vertices_; ++v) {
    splat_start_[v] = total;
    total += n_entries[v];
  }
  splat_start_[n_vertices_] = total;
  n_entries.clear();

  groups_ = link_chains<Words>(layout, table);
  // Entries of a vertex lie run by run and, within a run, in the order of the points.
  splat_entries_ = Buffer<SplatEntry>(n_points_ * corners);
  parallel_for(n_points_, run_points, [&](std::size_t begin, std::size_t end) {
    const std::uint32_t* number = runs[begin / run_points].numbers.data();
    std::uint32_t* cursor = runs[begin / run_points].n_entries.data();
    const std::size_t n_own = runs[begin / run_points].numbers.size();
    std::uint32_t* const vertex_of = vertex_of_.data();
    const float* const weight_of = weight_of_.data();
    SplatEntry* const entries = splat_entries_.data();
    for (std::size_t v = 0; v < n_own; ++v) {
      cursor[v] += splat_start_[number[v]];
#if defined(__GNUC__)
      __builtin_prefetch(entries + cursor[v], 1);
#endif
    }
    for (std::size_t p = begin; p < end; ++p) {
      for (std::size_t e = p * corners; e < (p + 1) * corners; ++e) {
        const std::uint32_t v = vertex_of[e];
        vertex_of[e] = number[v];
        entries[cursor[v]++] = {static_cast<std::uint32_t>(p), weight_of[e]};
      }
    }
  });
}

std::optional<BuildError> Lattice::build(const PointSource& points, std::unique_ptr<Lattice>& result) {
  const std::size_t n_points = points.n_points();
  const int n_dims = points.n_dims();
  if (n_dims < 1 || n_dims > max_dims) return BuildError::bad_shape;
  if (n_points > (std::size_t{1} << 31) / static_cast<std::size_t>(n_dims + 1) - 1) return BuildError::too_many_points;

  std::unique_ptr<Lattice> lattice(new Lattice);
  lattice->n_points_ = n_points;
  lattice->n_dims_ = n_dims;
  if (n_points != 0) {
    const Bounds bounds = measure_all(points, Scales(n_dims));
    if (!bounds.usable) return all_finite(points) ? BuildError::out_of_range : BuildError::non_finite;
    const std::size_t n_entries = n_points * static_cast<std::size_t>(n_dims + 1);
    lattice->vertex_of_ = Buffer<std::uint32_t>(n_entries);
    lattice->weight_of_ = Buffer<float>(n_entries);
    const KeyLayout layout(bounds, n_dims);
    switch (std::bit_ceil(static_cast<unsigned>(layout.n_words))) {
      case 1: lattice->number_vertices<1>(points, layout); break;
      case 2: lattice->number_vertices<2>(points, layout); break;
      case 4: lattice->number_vertices<4>(points, layout); break;
      default: lattice->number_vertices<8>(points, layout); break;
    }
  } else {
    lattice->splat_start_ = Buffer<std::uint32_t>(1);
    lattice->splat_start_[0] = 0;
  }
  result = std::move(lattice);
  return std::nullopt;
}

std::optional<BuildError> Lattice::build(std::span<const float> features, std::size_t n_points, int n_dims,
                                         std::unique_ptr<Lattice>& result) {
  if (n_dims < 1 || n_dims > max_dims || features.size() != n_points * static_cast<std::size_t>(n_dims)) {
    return BuildError::bad_shape;
  }
  return build(FeatureArray(features, n_points, n_dims), result);
}

}  // namespace crfasrnn
