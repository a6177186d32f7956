#include "mean_field.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

#include "label_matrix.hpp"
#include "parallel.hpp"

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

}  // namespace

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

  Buffer<float> logits(n * w);  // the scaled unary, its largest label at 0; at last the refined logits
  Buffer<float> shift(n);       // what was taken away for that
  Buffer<Marginal> marginals(n * w);
  std::atomic<bool> finite{true};
  order_.for_squares([&](const Square& square) {
    if (!(k.*Rows::pack)(width, planes, square, unary.data(), weights.unary_scale, logits.data(), shift.data(),
                         marginals.data())) {
      finite.store(false, std::memory_order_relaxed);
    }
  });
  if (!finite.load()) return false;

  const LabelMatrix maps[2] = {LabelMatrix(weights.spatial, n_labels, width),
                               LabelMatrix(weights.bilateral, n_labels, width)};
  const Side* sides[2] = {&spatial_, &bilateral_};
  Buffer<float> vertices[2];
  Message messages[2];
  for (int i = 0; i < 2; ++i) {
    vertices[i] = Buffer<float>(sides[i]->lattice->n_vertices() * w);
    messages[i] = sides[i]->message(vertices[i].data(), maps[i].scale / Rows::whole);
  }
  const bool bounded = spatial_.averages && bilateral_.averages &&
                       largest_row_sum(weights.spatial, n_labels) + largest_row_sum(weights.bilateral, n_labels) <= safe_bound;
  for (int iteration = 0; iteration < n_iterations; ++iteration) {
    for (int i = 0; i < 2; ++i) {
      Rows::splat(*sides[i], width, marginals, maps[i].map, vertices[i].data());
      sides[i]->lattice->blur(width, vertices[i].data(), false);
    }
    if (iteration + 1 < n_iterations) {
      parallel_for(n, grain, [&](std::size_t begin, std::size_t end) {
        Rows::update(width, logits.data(), messages, bounded, marginals.data(), begin, end);
      });
    } else {
      // Rows become planes while they are in the cache.
      order_.for_squares([&](const Square& square) {
        k.update(width, logits.data(), messages[0], messages[1], Finish::nothing, logits.data(), square.first_point,
                 square.first_point + square.n_points());
        k.unpack(width, planes, square, logits.data(), shift.data(), weights.output_scale, out.data());
      });
    }
    tell(iteration + 1, n_iterations);
  }
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

  const Buffer<std::uint32_t> orders[2] = {sides[0]->lattice->order_by_points(), sides[1]->lattice->order_by_points()};
  for (int iteration = 0; iteration < n_iterations; ++iteration) {
    for (int i = 0; i < 2; ++i) {
      sides[i]->lattice->splat_scalars(orders[i].data(), sides[i]->splat_entries(), marginal.data(),
                                       vertices[i].data());
      sides[i]->lattice->blur(1, vertices[i].data(), false);
    }
    if (iteration + 1 == n_iterations) break;
    parallel_for(n, grain, [&](std::size_t begin, std::size_t end) {
      k.update(1, difference.data(), messages[0], messages[1], Finish::nothing, marginal.data(), begin, end);
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
