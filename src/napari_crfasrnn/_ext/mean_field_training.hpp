// The mean field as a function with a gradient: a forward run that keeps what its backward run needs.
//
// With marginals q, matrix A, factors `before` and `after` of a kernel, an iteration takes away from the
// logits the message
//
//     m = after * slice(A blur(splat(before * q)))
//
// A acts on labels and the others on points, so they commute. With g the gradient of the iteration's
// logits and c = splat(after * g), a row per vertex,
//
//     dA = -sum over vertices of c_v y_v^T,  y = blur(splat(before * q))
//     dq = -before * slice(blur^T(A^T c))
//
// and the gradient of the logits before is q * (dq - <q, dq>). The logits that go in collect g from every
// iteration. So a backward iteration is a forward one with `before` and `after`, A and A^T exchanged and the
// axes of the blur reversed, and dA costs a product per vertex, not per point.
#pragma once

#include <memory>
#include <span>

#include "mean_field.hpp"

namespace crfasrnn {

class MeanFieldTraining {
 public:
  using Kernel = MeanField::Kernel;
  using Weights = MeanField::Weights;

  MeanFieldTraining(const Kernel& spatial, const Kernel& bilateral, PixelOrder order);

  std::size_t n_points() const { return spatial_.forward->lattice->n_points(); }

  // How many floats an iteration keeps: the marginals it starts from and, for gradients of the matrices, the
  // vertices of both kernels; rows of the padded number of labels.
  std::size_t trace_size(int n_labels, bool with_vertices) const;

  // As MeanField::run. `trace`, trace_size for each iteration, receives what `backward` needs.
  bool forward(std::span<const float> unary, int n_labels, const Weights& weights, int n_iterations,
               std::span<float> out, std::span<float> trace, bool with_vertices,
               const AfterIteration& after_iteration = {}) const;

  // What is to be computed; empty spans are not.
  struct Gradients {
    std::span<float> unary;  // [L, N]
    std::span<float> spatial;  // [L, L]
    std::span<float> bilateral;
  };
  // `gradient` [L, N] is that of what `forward` wrote with these weights. Sums have a fixed order: the bits
  // do not depend on the number of threads. Matrices need a trace with vertices.
  void backward(std::span<const float> trace, bool with_vertices, int n_labels, const Weights& weights,
                int n_iterations, std::span<const float> gradient, const Gradients& wanted) const;

 private:
  // A kernel and its adjoint, in which the factors have changed places.
  struct Pair {
    std::shared_ptr<const MeanField::Side> forward;
    std::shared_ptr<const MeanField::Side> adjoint;

    explicit Pair(const Kernel& kernel);
  };
  const Lattice& lattice(int i) const { return *(i == 0 ? spatial_ : bilateral_).forward->lattice; }

  Pair spatial_;
  Pair bilateral_;
  PixelOrder order_;
};

// The sum of a[i] * b[i], in an order that does not depend on the number of threads.
double dot(std::span<const float> a, std::span<const float> b);

}  // namespace crfasrnn
