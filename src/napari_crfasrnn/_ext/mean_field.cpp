#include "mean_field.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <type_traits>
#include <utility>

#include "label_matrix.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace crfasrnn {
namespace {

constexpr std::size_t grain = 1 << 11;

template <class T>
Buffer<T> copied(std::span<const T> source) {
  Buffer<T> copy(source.size());
  in_pieces(source.size(), pause, [&](std::size_t begin, std::size_t end) {
    std::copy(source.data() + begin, source.data() + end, copy.data() + begin);
  });
  return copy;
}

// Call body(pixel, point) for all of a square.
template <class Body>
void for_pixels(const Planes& planes, const Square& square, const Body& body) {
  for (std::size_t y = 0; y < square.rows; ++y) {
    const std::size_t first = square.first_pixel + y * square.stride;
    for (std::size_t pixel = first; pixel < first + square.columns; ++pixel) {
      body(pixel, planes.point_at(pixel));
    }
  }
}

// The kernels for either kind of marginals.
template <class Marginal>
struct Rows;

template <>
struct Rows<float> {
  static constexpr float whole = 1.0F;
  static constexpr auto pack = &Kernels::pack;
  static void splat(const MeanField::Side& side, int width, const Buffer<float>& marginals, const LabelMap& map,
                    float* vertices) {
    const auto w = static_cast<std::size_t>(width);
    const ValueRows rows{marginals.data(), w, static_cast<std::uint32_t>(marginals.size() / w), nullptr, 0};
    side.lattice->splat(width, side.splat_entries(), rows, map, vertices);
  }
  static void update(int width, const float* logits, const Message* messages, bool bounded, float* marginals,
                     std::size_t begin, std::size_t end) {
    const Finish softmax = bounded ? Finish::softmax_of_bounded : Finish::softmax;
    kernels().update(width, logits, messages[0], messages[1], softmax, marginals, begin, end);
  }
};

template <>
struct Rows<Share> {
  static constexpr float whole = whole_share;
  static constexpr auto pack = &Kernels::pack_shares;
  static void splat(const MeanField::Side& side, int width, const Buffer<Share>& marginals, const LabelMap& map,
                    float* vertices) {
    side.lattice->splat_shares(width, side.splat_entries(), marginals.data(), map, vertices);
  }
  static void update(int width, const float* logits, const Message* messages, bool bounded, Share* marginals,
                     std::size_t begin, std::size_t end) {
    kernels().update_shares(width, logits, messages[0], messages[1], bounded, marginals, begin, end);
  }
};

// Whether summing tile by tile is faster than gathering all marginals. A tile writes a row for every vertex that it
// touches: these must be much fewer than the rows that would be gathered, and those must not lie in the cache anyway.
bool tiles_pay(const Lattice& bilateral) {
  constexpr std::size_t many_points = 1 << 17;
  return bilateral.n_points() >= many_points && 4 * bilateral.n_vertices() < bilateral.n_points();
}

}  // namespace

const TiledSplat* TiledPair::splats(const Lattice& first, const Lattice& second, const Tiles& tiles) const {
  const std::lock_guard lock(mutex_);
  if (splats_.empty()) {
    TiledSplat of_first(first, tiles);
    TiledSplat of_second(second, tiles);
    splats_.reserve(2);
    splats_.push_back(std::move(of_first));
    splats_.push_back(std::move(of_second));
  }
  return splats_.data();
}

MeanField::Side::Side(const Kernel& kernel) : lattice(kernel.lattice), after(copied(kernel.after)), averages(kernel.averages) {
  if (kernel.before.empty()) return;
  entries = Buffer<SplatEntry>(lattice->n_points() * static_cast<std::size_t>(lattice->n_corners()));
  const SplatEntry* source = lattice->splat_entries();
  parallel_for(entries.size(), 1 << 15, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      entries[i] = {source[i].point, source[i].weight * kernel.before[source[i].point]};
    }
  });
}

const SplatEntry* MeanField::Side::splat_entries() const {
  return entries.size() == 0 ? lattice->splat_entries() : entries.data();
}

Message MeanField::Side::message(const float* vertices, float scale) const {
  return {lattice->vertex_of(),
          lattice->weight_of(),
          vertices,
          after.size() == 0 ? nullptr : after.data(),
          scale * lattice->slice_gain(),
          lattice->n_corners()};
}

MeanField::MeanField(const Kernel& spatial, const Kernel& bilateral, PixelOrder order)
    : spatial_(spatial), bilateral_(bilateral), order_(std::move(order)) {}

bool MeanField::run(std::span<const float> unary, int n_labels, const Weights& weights, int n_iterations,
                    std::span<float> out, const AfterIteration& after_iteration) const {
  int n_done = 0;
  const AfterIteration tell = [&](int done, int total) {
    n_done = done;
    if (after_iteration) after_iteration(done, total);
  };
  const Pauses pauses([&] { tell(n_done, n_iterations); });
  if (n_labels == 2 && spatial_.averages && bilateral_.averages) {
    return run_two_labels(unary, weights, n_iterations, out, tell);
  }
  if (weights.storage == MarginalStorage::shares && spatial_.averages && bilateral_.averages) {
    return run_rows<Share>(unary, n_labels, weights, n_iterations, out, tell);
  }
  return run_rows<float>(unary, n_labels, weights, n_iterations, out, tell);
}

template <class Marginal>
bool MeanField::run_rows(std::span<const float> unary, int n_labels, const Weights& weights, int n_iterations,
                         std::span<float> out, const AfterIteration& tell) const {
  using Rows = crfasrnn::Rows<Marginal>;
  const std::size_t n = n_points();
  const int width = padded_width(static_cast<std::size_t>(n_labels));
  const auto w = static_cast<std::size_t>(width);
  const Kernels& k = kernels();
  const Planes planes = order_.planes(n_labels);

  const LabelMatrix maps[2] = {LabelMatrix(weights.spatial, n_labels, width),
                               LabelMatrix(weights.bilateral, n_labels, width)};
  const Side* sides[2] = {&spatial_, &bilateral_};
  // Marginals exist tile by tile, or all of them at a time.
  const bool in_tiles =
      std::is_same_v<Marginal, float> && spatial_.averages && bilateral_.averages && tiles_pay(*bilateral_.lattice);
  const Tiles tiles(order_.squares());
  const TiledSplat* splats = in_tiles ? tiled_.splats(*spatial_.lattice, *bilateral_.lattice, tiles) : nullptr;
  Buffer<Marginal> marginals(in_tiles ? 0 : n * w);
  Buffer<float> sums[2];
  Buffer<float> vertices[2];
  Message messages[2];
  for (int i = 0; i < 2; ++i) {
    if (in_tiles) sums[i] = Buffer<float>(splats[i].n_sums() * w);
    vertices[i] = Buffer<float>(sides[i]->lattice->n_vertices() * w);
    messages[i] = sides[i]->message(vertices[i].data(), maps[i].scale / Rows::whole);
  }
  const auto splat_tile = [&]([[maybe_unused]] std::size_t tile, [[maybe_unused]] const Marginal* rows) {
    if constexpr (std::is_same_v<Marginal, float>) {
      for (int i = 0; i < 2; ++i) splats[i].splat(width, tile, rows, sums[i].data());
    }
  };

  Buffer<float> logits(n * w);  // the scaled unary, its largest label at 0
  Buffer<float> shift(n);       // what was taken away for that
  std::atomic<bool> finite{true};
  {
    Scratch<Marginal> scratch(in_tiles ? order_.largest_square() * w : 0);
    order_.for_squares([&](const Square& square) {
      const typename Scratch<Marginal>::Loan own(scratch);
      Marginal* rows = in_tiles ? own.data() : marginals.data() + square.first_point * w;
      if (!(k.*Rows::pack)(width, planes, square, unary.data(), weights.unary_scale, logits.data(), shift.data(), rows)) {
        finite.store(false, std::memory_order_relaxed);
      }
      if (!in_tiles) return;
      tiles.for_square(square, [&](std::size_t tile, std::size_t first) { splat_tile(tile, rows + first * w); });
    });
  }
  if (!finite.load()) return false;

  const bool bounded = spatial_.averages && bilateral_.averages &&
                       largest_row_sum(weights.spatial, n_labels) + largest_row_sum(weights.bilateral, n_labels) <= safe_bound;
  Scratch<Marginal> scratch(in_tiles ? Tiles::most_points * w : 0);
  for (int iteration = 0;; ++iteration) {
    for (int i = 0; i < 2; ++i) {
      if (in_tiles) {
        splats[i].add_up(width, sums[i].data(), maps[i].map, vertices[i].data());
      } else {
        Rows::splat(*sides[i], width, marginals, maps[i].map, vertices[i].data());
      }
      sides[i]->lattice->blur(width, vertices[i].data(), false);
    }
    if (iteration + 1 >= n_iterations) break;
    tiles.for_all([&](std::size_t tile, std::size_t begin, std::size_t end) {
      const typename Scratch<Marginal>::Loan own(scratch);
      Marginal* rows = in_tiles ? own.data() : marginals.data() + begin * w;
      Rows::update(width, logits.data(), messages, bounded, rows, begin, end);
      if (in_tiles) splat_tile(tile, rows);
    });
    tell(iteration + 1, n_iterations);
  }
  // Rows become planes while they are in the cache.
  Scratch<float> refined(order_.largest_square() * w);
  order_.for_squares([&](const Square& square) {
    const Scratch<float>::Loan own(refined);
    k.update(width, logits.data(), messages[0], messages[1], Finish::nothing, own.data(), square.first_point,
             square.first_point + square.n_points());
    k.unpack(width, planes, square, own.data(), shift.data(), weights.output_scale, out.data());
  });
  tell(n_iterations, n_iterations);
  return true;
}

// With two labels and kernels that average, q1 = 1 - q0 and the message of label 0 is 1 minus that of
// label 1: one value per point is enough. The state is the difference of the logits.
bool MeanField::run_two_labels(std::span<const float> unary, const Weights& weights, int n_iterations,
                               std::span<float> out, const AfterIteration& after_iteration) const {
  const std::size_t n = n_points();
  const Kernels& k = kernels();
  const Planes planes = order_.planes(2);
  const Side* sides[2] = {&spatial_, &bilateral_};
  const std::span<const float> maps[2] = {weights.spatial, weights.bilateral};

  // message of label l = map[l, 0] + (map[l, 1] - map[l, 0]) * s, with s the message of q1
  float constant = 0.0F;
  Buffer<float> vertices[2];
  Message messages[2];
  for (int i = 0; i < 2; ++i) {
    constant += maps[i][2] - maps[i][0];
    const float slope = (maps[i][3] - maps[i][2]) - (maps[i][1] - maps[i][0]);
    vertices[i] = Buffer<float>(sides[i]->lattice->n_vertices());
    messages[i] = sides[i]->message(vertices[i].data(), -slope);
  }
  Buffer<float> difference(n);  // logit of label 1 minus that of label 0, less the constant
  Buffer<float> marginal(n);    // of label 1
  std::atomic<bool> finite{true};
  order_.for_squares([&](const Square& square) {
    bool own = true;
    for_pixels(planes, square, [&](std::size_t pixel, std::size_t p) {
      const float low = unary[pixel];
      const float high = unary[n + pixel];
      own &= std::isfinite(low) && std::isfinite(high);
      const float start = weights.unary_scale * high - weights.unary_scale * low;
      difference[p] = start - constant;
      marginal[p] = start;
    });
    if (!own) finite.store(false, std::memory_order_relaxed);
    k.sigmoid(marginal.data(), square.first_point, square.first_point + square.n_points());
  });
  if (!finite.load()) return false;

  const Buffer<ScalarSum> sums[2] = {sides[0]->lattice->scalar_sums(), sides[1]->lattice->scalar_sums()};
  for (int iteration = 0; iteration < n_iterations; ++iteration) {
    for (int i = 0; i < 2; ++i) {
      sides[i]->lattice->splat_scalars(sums[i], sides[i]->splat_entries(), marginal.data(), vertices[i].data());
      sides[i]->lattice->blur(1, vertices[i].data(), false);
    }
    if (iteration + 1 == n_iterations) break;
    parallel_for(n, grain, [&](std::size_t begin, std::size_t end) {
      k.update(1, difference.data(), messages[0], messages[1], Finish::nothing, marginal.data() + begin, begin, end);
      k.sigmoid(marginal.data(), begin, end);
    });
    after_iteration(iteration + 1, n_iterations);
  }
  // The last messages one by one: both labels need them.
  Buffer<float> sliced[2] = {Buffer<float>(n), Buffer<float>(n)};
  order_.for_squares([&](const Square& square) {
    for (int i = 0; i < 2; ++i) {
      const Lattice& lattice = *sides[i]->lattice;
      k.slice(1, lattice.vertex_of(), lattice.weight_of(), lattice.n_corners(), lattice.slice_gain(),
              vertices[i].data(), sliced[i].data(), 1, 1, square.first_point, square.first_point + square.n_points());
    }
    for_pixels(planes, square, [&](std::size_t pixel, std::size_t p) {
      float state[2] = {weights.unary_scale * unary[pixel], weights.unary_scale * unary[n + pixel]};
      for (int i = 0; i < 2; ++i) {
        const float s = sliced[i][p] * sides[i]->after[p];
        state[0] -= maps[i][0] + (maps[i][1] - maps[i][0]) * s;
        state[1] -= maps[i][2] + (maps[i][3] - maps[i][2]) * s;
      }
      out[pixel] = weights.output_scale * state[0];
      out[n + pixel] = weights.output_scale * state[1];
    });
  });
  after_iteration(n_iterations, n_iterations);
  return true;
}

}  // namespace crfasrnn
