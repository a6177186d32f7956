#include "mean_field_training.hpp"

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "kernels_training.hpp"
#include "label_matrix.hpp"
#include "parallel.hpp"

namespace crfasrnn {
namespace {

constexpr std::size_t point_grain = 1 << 11;
// Vertices whose products make one partial sum; what is summed and mapped in turn fits a cache.
constexpr std::size_t vertex_grain = 1 << 11;

// Sections of a trace begin on a cache line, as whole arrays do.
std::size_t aligned(std::size_t n_floats) { return (n_floats + 15) / 16 * 16; }

std::vector<float> transposed(std::span<const float> matrix, int n_labels) {
  const auto n = static_cast<std::size_t>(n_labels);
  std::vector<float> out(n * n);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) out[j * n + i] = matrix[i * n + j];
  }
  return out;
}

// Add the products of all vertices to `sums` [width, width], and map the rows on the left when that is done.
void add_all_products(int width, std::size_t n_vertices, float* left, const float* right, const LabelMap& then,
                      std::vector<double>& sums) {
  const Kernels& k = kernels();
  const std::size_t n_sums = sums.size();
  const std::size_t n_parts = (n_vertices + vertex_grain - 1) / vertex_grain;
  Buffer<float> parts(n_parts * n_sums);
  parallel_for(n_parts, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t part = begin; part < end; ++part) {
      const std::size_t first = part * vertex_grain;
      const std::size_t last = std::min(first + vertex_grain, n_vertices);
      float* own = parts.data() + part * n_sums;
      std::fill(own, own + n_sums, 0.0F);
      k.training->add_products(width, left, right, own, first, last);
      if (then.kind != LabelMap::Kind::identity) k.map_labels(width, then, left, left, first, last);
    }
  });
  for (std::size_t part = 0; part < n_parts; ++part) {
    for (std::size_t i = 0; i < n_sums; ++i) sums[i] += static_cast<double>(parts[part * n_sums + i]);
  }
}

}  // namespace

MeanFieldTraining::Pair::Pair(const Kernel& kernel) : forward(std::make_shared<MeanField::Side>(kernel)) {
  const bool symmetric = kernel.before.data() == kernel.after.data() && kernel.before.size() == kernel.after.size();
  adjoint = symmetric ? forward
                      : std::make_shared<MeanField::Side>(Kernel{kernel.lattice, kernel.after, kernel.before, false});
}

MeanFieldTraining::MeanFieldTraining(const Kernel& spatial, const Kernel& bilateral, PixelOrder order)
    : spatial_(spatial), bilateral_(bilateral), order_(std::move(order)) {}

std::size_t MeanFieldTraining::trace_size(int n_labels, bool with_vertices) const {
  const auto w = static_cast<std::size_t>(padded_width(static_cast<std::size_t>(n_labels)));
  std::size_t size = aligned(n_points() * w);
  if (with_vertices) size += aligned(lattice(0).n_vertices() * w) + aligned(lattice(1).n_vertices() * w);
  return size;
}

bool MeanFieldTraining::forward(std::span<const float> unary, int n_labels, const Weights& weights, int n_iterations,
                                std::span<float> out, std::span<float> trace, bool with_vertices,
                                const AfterIteration& after_iteration) const {
  const std::size_t n = n_points();
  const int width = padded_width(static_cast<std::size_t>(n_labels));
  const auto w = static_cast<std::size_t>(width);
  const Kernels& k = kernels();
  const Planes planes = order_.planes(n_labels);

  Buffer<float> logits(n * w);  // the scaled unary, its largest label at 0; at last the refined logits
  Buffer<float> shift(n);
  std::atomic<bool> finite{true};
  order_.for_squares([&](const Square& square) {
    if (!k.pack(width, planes, square, unary.data(), weights.unary_scale, logits.data(), shift.data(),
                trace.data() + square.first_point * w)) {
      finite.store(false, std::memory_order_relaxed);
    }
  });
  if (!finite.load()) return false;

  const LabelMatrix matrices[2] = {LabelMatrix(weights.spatial, n_labels, width),
                                   LabelMatrix(weights.bilateral, n_labels, width)};
  const MeanField::Side* sides[2] = {spatial_.forward.get(), bilateral_.forward.get()};
  const bool bounded =
      sides[0]->averages && sides[1]->averages &&
      largest_row_sum(weights.spatial, n_labels) + largest_row_sum(weights.bilateral, n_labels) <= safe_bound;
  const Finish softmax = bounded ? Finish::softmax_of_bounded : Finish::softmax;
  Buffer<float> scratch[2];  // vertices that are not kept, or kept ones after the matrix
  for (int i = 0; i < 2; ++i) {
    const bool is_needed = !with_vertices || matrices[i].map.kind != LabelMap::Kind::identity;
    if (is_needed) scratch[i] = Buffer<float>(lattice(i).n_vertices() * w);
  }
  const std::size_t size = trace_size(n_labels, with_vertices);
  for (int iteration = 0; iteration < n_iterations; ++iteration) {
    float* marginals = trace.data() + static_cast<std::size_t>(iteration) * size;
    float* kept = marginals + aligned(n * w);
    const ValueRows rows{marginals, w, static_cast<std::uint32_t>(n), nullptr, 0};
    Message messages[2];
    for (int i = 0; i < 2; ++i) {
      const LabelMap& map = matrices[i].map;
      const std::size_t n_vertices = lattice(i).n_vertices();
      float* vertices = with_vertices ? kept : scratch[i].data();
      lattice(i).splat(width, sides[i]->splat_entries(), rows, with_vertices ? LabelMap{} : map, vertices);
      lattice(i).blur(width, vertices, false);
      if (with_vertices) {
        kept += aligned(n_vertices * w);
        if (map.kind != LabelMap::Kind::identity) {
          parallel_for(n_vertices, vertex_grain, [&](std::size_t begin, std::size_t end) {
            k.map_labels(width, map, vertices, scratch[i].data(), begin, end);
          });
          vertices = scratch[i].data();
        }
      }
      messages[i] = sides[i]->message(vertices, matrices[i].scale);
    }
    const bool is_last = iteration + 1 == n_iterations;
    float* next = is_last ? logits.data() : marginals + size;
    parallel_for(n, point_grain, [&](std::size_t begin, std::size_t end) {
      k.update(width, logits.data(), messages[0], messages[1], is_last ? Finish::nothing : softmax, next + begin * w,
               begin, end);
    });
    if (after_iteration) after_iteration(iteration + 1, n_iterations);
  }
  order_.for_squares([&](const Square& square) {
    k.unpack(width, planes, square, logits.data() + square.first_point * w, shift.data(), weights.output_scale, out.data());
  });
  return true;
}

void MeanFieldTraining::backward(std::span<const float> trace, bool with_vertices, int n_labels,
                                 const Weights& weights, int n_iterations, std::span<const float> gradient,
                                 const Gradients& wanted) const {
  const std::size_t n = n_points();
  const int width = padded_width(static_cast<std::size_t>(n_labels));
  const auto w = static_cast<std::size_t>(width);
  const Kernels& k = kernels();
  const Planes planes = order_.planes(n_labels);
  const bool for_unary = !wanted.unary.empty();
  const std::span<float> wanted_matrices[2] = {wanted.spatial, wanted.bilateral};

  Buffer<float> state(n * w);                  // the gradient of the logits after the iteration at hand
  Buffer<float> total(for_unary ? n * w : 0);  // the sum over iterations, which the last one begins
  float* last = for_unary ? total.data() : state.data();
  order_.for_squares([&](const Square& square) {
    k.training->to_rows(width, planes, square, gradient.data(), weights.output_scale, last);
  });

  const std::vector<float> adjoint_matrices[2] = {transposed(weights.spatial, n_labels),
                                                  transposed(weights.bilateral, n_labels)};
  const LabelMatrix matrices[2] = {LabelMatrix(adjoint_matrices[0], n_labels, width),
                                   LabelMatrix(adjoint_matrices[1], n_labels, width)};
  const MeanField::Side* sides[2] = {spatial_.adjoint.get(), bilateral_.adjoint.get()};
  Buffer<float> vertices[2];
  std::vector<double> products[2];
  for (int i = 0; i < 2; ++i) {
    vertices[i] = Buffer<float>(lattice(i).n_vertices() * w);
    if (!wanted_matrices[i].empty()) products[i].assign(w * w, 0.0);
  }
  const std::size_t size = trace_size(n_labels, with_vertices);
  ValueRows rows{last, w, static_cast<std::uint32_t>(n), nullptr, 0};
  for (int iteration = n_iterations - 1; iteration >= 0; --iteration) {
    const float* marginals = trace.data() + static_cast<std::size_t>(iteration) * size;
    const float* kept = marginals + aligned(n * w);
    const bool goes_on = iteration > 0 || for_unary;
    Message messages[2];
    for (int i = 0; i < 2; ++i) {
      const bool for_matrix = !products[i].empty();
      const std::size_t n_vertices = lattice(i).n_vertices();
      if (goes_on || for_matrix) {
        const LabelMap map = goes_on ? matrices[i].map : LabelMap{};
        lattice(i).splat(width, sides[i]->splat_entries(), rows, for_matrix ? LabelMap{} : map, vertices[i].data());
        if (for_matrix) add_all_products(width, n_vertices, vertices[i].data(), kept, map, products[i]);
      }
      if (with_vertices) kept += aligned(n_vertices * w);
      if (!goes_on) continue;
      lattice(i).blur(width, vertices[i].data(), true);
      messages[i] = sides[i]->message(vertices[i].data(), matrices[i].scale);
    }
    if (!goes_on) break;
    parallel_for(n, point_grain, [&](std::size_t begin, std::size_t end) {
      k.training->retreat(width, marginals, messages[0], messages[1], state.data(),
                          for_unary ? total.data() : nullptr, begin, end);
    });
    rows.rows = state.data();
  }

  const auto l = static_cast<std::size_t>(n_labels);
  for (int i = 0; i < 2; ++i) {
    if (products[i].empty()) continue;
    const double gain = -static_cast<double>(lattice(i).slice_gain());
    for (std::size_t row = 0; row < l; ++row) {
      for (std::size_t column = 0; column < l; ++column) {
        wanted_matrices[i][row * l + column] = static_cast<float>(gain * products[i][row * w + column]);
      }
    }
  }
  if (!for_unary) return;
  order_.for_squares([&](const Square& square) {
    k.training->to_planes(width, planes, square, total.data() + square.first_point * w, weights.unary_scale,
                          wanted.unary.data());
  });
}

double dot(std::span<const float> a, std::span<const float> b) {
  constexpr std::size_t grain = 1 << 16;
  const std::size_t n_parts = (a.size() + grain - 1) / grain;
  std::vector<double> parts(n_parts);
  parallel_for(n_parts, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t part = begin; part < end; ++part) {
      const std::size_t first = part * grain;
      parts[part] = kernels().training->dot(a.data(), b.data(), first, std::min(first + grain, a.size()));
    }
  });
  double total = 0.0;
  for (const double part : parts) total += part;
  return total;
}

}  // namespace crfasrnn
