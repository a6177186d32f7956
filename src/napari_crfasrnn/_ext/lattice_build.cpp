// How a lattice comes to be: simplices of all points, numbers of their vertices, and for every vertex
// the points around it.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <mutex>
#include <type_traits>

#include "blur_chains.hpp"
#include "lattice.hpp"
#include "parallel.hpp"
#include "plane_table.hpp"
#include "point_source.hpp"
#include "vertex_table.hpp"

namespace crfasrnn {
namespace {

// Points are numbered in runs of this many: few enough for the table of a run to stay in the second-level
// cache, enough for most vertices of an image to be met by one run or two.
constexpr std::size_t run_points = 4096;

// A plane of vertices has a cell for each that may be while these are no more than points, or this many.
constexpr std::size_t small_plane = 1 << 14;

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

// The same of features in a box. It may be wider than what the points really fill, and is only used where it
// is small enough.
Bounds elevated_box(const FeatureBox& box, int d, const Scales& scales) {
  Bounds bounds{};
  float low = 0.0F;
  float high = 0.0F;
  bounds.usable = true;
  for (int j = d; j >= 0; --j) {
    const float own_low = j == 0 ? 0.0F : box.low[j - 1] * scales.of[j - 1];
    const float own_high = j == 0 ? 0.0F : box.high[j - 1] * scales.of[j - 1];
    bounds.low[j] = low - static_cast<float>(j) * own_high;
    bounds.high[j] = high - static_cast<float>(j) * own_low;
    // Written so that NaN counts as outside.
    bounds.usable = bounds.usable && bounds.low[j] >= -coordinate_limit && bounds.high[j] <= coordinate_limit;
    low += own_low;
    high += own_high;
  }
  return bounds;
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
template <class Key>
struct Run {
  Buffer<Key> keys;
  Buffer<std::uint32_t> n_entries;  // how many corners fall on each; later where the next one is written
  Buffer<std::uint32_t> numbers;    // among the vertices of all runs
};

// Number the corners of the points in [begin, end) in the order in which they come. D is their dimension, or
// 0 for any.
template <int D, class Keys>
Run<typename Keys::Key> number_run(const PointSource& points, std::size_t begin, std::size_t end, const Keys& vertex_keys,
                                   const Scales& scales, std::uint32_t* vertex_of, float* weight_of) {
  using Key = typename Keys::Key;
  const int d = D > 0 ? D : points.n_dims();
  const auto corners = static_cast<std::size_t>(d + 1);
  Key step[max_dims + 1];
  for (int j = 0; j <= d; ++j) step[j] = vertex_keys.step(j);
  typename Keys::RunTable table = vertex_keys.run_table(end - begin);
  FeatureBlock features;
  SimplexBlock simplices;
  Key origin[simplex_lanes];
  std::array<Key, simplex_lanes*(D > 0 ? D + 1 : max_dims + 1)> keys;
  for (std::size_t first = begin; first < end; first += block_points) {
    const std::size_t count = std::min(block_points, end - first);
    points.read(first, count, features);
    for (std::size_t b = 0; b < count; b += simplex_lanes) {
      kernels().simplices(features, b, d, scales.of, simplices);
      const std::size_t n = std::min<std::size_t>(simplex_lanes, count - b);
      vertex_keys.origins(simplices, origin);
      for (std::size_t l = 0; l < n; ++l) {
        Key key = origin[l];
        // From the corner of remainder c to the next one is a step along one axis.
        Key* own = keys.data() + l * corners;
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
  Run<Key> run{Buffer<Key>(table.size()), Buffer<std::uint32_t>(table.size()), {}};
  std::copy_n(table.keys(), table.size(), run.keys.data());
  std::fill_n(run.n_entries.data(), table.size(), 0U);
  for (std::size_t e = begin * corners; e < end * corners; ++e) ++run.n_entries[vertex_of[e]];
  return run;
}

template <class Keys>
Run<typename Keys::Key> number_run(const PointSource& points, std::size_t begin, std::size_t end, const Keys& vertex_keys,
                                   const Scales& scales, std::uint32_t* vertex_of, float* weight_of) {
  if constexpr (std::is_same_v<Keys, PlaneKeys>) {
    return number_run<PlaneKeys::n_dims>(points, begin, end, vertex_keys, scales, vertex_of, weight_of);
  }
  if constexpr (std::is_same_v<Keys, HashKeys<1>>) {
    // Images and grey volumes, with loop bounds that the compiler knows.
    switch (points.n_dims()) {
      case 2: return number_run<2>(points, begin, end, vertex_keys, scales, vertex_of, weight_of);
      case 3: return number_run<3>(points, begin, end, vertex_keys, scales, vertex_of, weight_of);
      case 4: return number_run<4>(points, begin, end, vertex_keys, scales, vertex_of, weight_of);
      case 5: return number_run<5>(points, begin, end, vertex_keys, scales, vertex_of, weight_of);
      default: break;
    }
  }
  return number_run<0>(points, begin, end, vertex_keys, scales, vertex_of, weight_of);
}

// Runs are taken so many at a time; in between somebody may say stop. On one thread that is about 30 ms.
constexpr std::size_t runs_at_once = 64;

// What is told of a build: that so many runs are numbered, joined and written.
class Steps {
 public:
  Steps(std::size_t n_runs, const OnStep& on_step)
      : total_(3 * ((n_runs + runs_at_once - 1) / runs_at_once)), on_step_(on_step) {}
  void advance() {
    ++done_;
    tell();
  }
  // Where that is, also in between.
  void tell() const {
    if (on_step_) on_step_(static_cast<int>(done_), static_cast<int>(total_));
  }

 private:
  std::size_t done_ = 0;
  std::size_t total_;
  const OnStep& on_step_;
};

// Call body(begin, end) for every run of points, by any thread.
template <class Body>
void for_runs(std::size_t n_points, Steps& steps, const Body& body) {
  constexpr std::size_t points_at_once = runs_at_once * run_points;
  FirstException failure;
  for (std::size_t first = 0; first < n_points; first += points_at_once) {
    parallel_for(std::min(points_at_once, n_points - first), run_points, [&](std::size_t begin, std::size_t end) {
      failure.guard([&] { body(first + begin, first + end); });
    });
    failure.rethrow();
    steps.advance();
  }
}

}  // namespace

template <class Keys>
void Lattice::number_vertices(const PointSource& points, const Keys& vertex_keys, const OnStep& on_step) {
  const Scales scales(n_dims_);
  const auto corners = static_cast<std::size_t>(n_corners());
  const std::size_t n_runs = (n_points_ + run_points - 1) / run_points;
  Steps steps(n_runs, on_step);
  const Pauses pauses([&steps] { steps.tell(); });

  std::vector<Run<typename Keys::Key>> runs(n_runs);
  for_runs(n_points_, steps, [&](std::size_t begin, std::size_t end) {
    runs[begin / run_points] =
        number_run(points, begin, end, vertex_keys, scales, vertex_of_.data(), weight_of_.data());
  });

  // The runs' vertices get their final numbers in the order of the runs, which is that of the points.
  std::size_t n_found = 0;
  for (const auto& run : runs) n_found += run.keys.size();
  typename Keys::Table table = vertex_keys.joint_table(n_found);
  Buffer<std::uint32_t> n_entries(n_found);  // of each vertex, in the runs so far
  for (std::size_t r = 0; r < n_runs; ++r) {
    auto& run = runs[r];
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
    if ((r + 1) % runs_at_once == 0 || r + 1 == n_runs) steps.advance();
  }
  n_vertices_ = table.size();
  splat_start_ = Buffer<std::uint32_t>(n_vertices_ + 1);
  std::uint32_t total = 0;
  in_pieces(n_vertices_, pause, [&](std::size_t begin, std::size_t end) {
    for (std::size_t v = begin; v < end; ++v) {
      splat_start_[v] = total;
      total += n_entries[v];
    }
  });
  splat_start_[n_vertices_] = total;
  n_entries.clear();

  groups_ = link_chains(n_dims_, vertex_keys, table);
  // Entries of a vertex lie run by run and, within a run, in the order of the points.
  splat_entries_ = Buffer<SplatEntry>(n_points_ * corners);
  for_runs(n_points_, steps, [&](std::size_t begin, std::size_t end) {
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

std::optional<BuildError> Lattice::build(const PointSource& points, std::unique_ptr<Lattice>& result,
                                         const OnStep& on_step) {
  const std::size_t n_points = points.n_points();
  const int n_dims = points.n_dims();
  if (n_dims < 1 || n_dims > max_dims) return BuildError::bad_shape;
  if (n_points > (std::size_t{1} << 31) / static_cast<std::size_t>(n_dims + 1) - 1) return BuildError::too_many_points;

  std::unique_ptr<Lattice> lattice(new Lattice);
  lattice->n_points_ = n_points;
  lattice->n_dims_ = n_dims;
  if (n_points != 0) {
    const Steps nothing_yet((n_points + run_points - 1) / run_points, on_step);
    const Pauses pauses([&nothing_yet] { nothing_yet.tell(); });
    const Scales scales(n_dims);
    FeatureBox box;
    Bounds bounds{};
    if (points.find_box(box)) bounds = elevated_box(box, n_dims, scales);
    const bool boxed = bounds.usable;
    // Where a box that is too wide might cost a word of the keys, points are measured one by one.
    if (!boxed || KeyLayout(bounds, n_dims).n_words > 1) bounds = measure_all(points, scales);
    if (!bounds.usable) return all_finite(points) ? BuildError::out_of_range : BuildError::non_finite;
    const std::size_t n_entries = n_points * static_cast<std::size_t>(n_dims + 1);
    lattice->vertex_of_ = Buffer<std::uint32_t>(n_entries);
    lattice->weight_of_ = Buffer<float>(n_entries);
    if (boxed && n_dims == PlaneKeys::n_dims) {
      const PlaneKeys plane(box, scales.of, run_points);
      if (plane.n_cells() <= std::max(n_points, small_plane)) {
        lattice->number_vertices(points, plane, on_step);
        result = std::move(lattice);
        return std::nullopt;
      }
    }
    const KeyLayout layout(bounds, n_dims);
    switch (std::bit_ceil(static_cast<unsigned>(layout.n_words))) {
      case 1: lattice->number_vertices(points, HashKeys<1>(layout), on_step); break;
      case 2: lattice->number_vertices(points, HashKeys<2>(layout), on_step); break;
      case 4: lattice->number_vertices(points, HashKeys<4>(layout), on_step); break;
      default: lattice->number_vertices(points, HashKeys<8>(layout), on_step); break;
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
