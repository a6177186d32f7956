// The inner loops that only the differentiable mean field needs, one table per instruction set.
#pragma once

#include "kernels.hpp"

namespace crfasrnn {

struct TrainingKernels {
  // rows[p] = scale * what the planes hold for point p, padded with zeros; for the points of a square.
  void (*to_rows)(int width, const Planes& planes, const Square& square, const float* values, float scale,
                  float* rows);
  // values [L, N] = scale * rows[p - first point of the square] for the pixels of a square.
  void (*to_planes)(int width, const Planes& planes, const Square& square, const float* rows, float scale,
                    float* values);
  // sums[i, j] += left[m, i] * right[m, j] over m in [begin, end); [width, width].
  void (*add_products)(int width, const float* left, const float* right, float* sums, std::size_t begin,
                       std::size_t end);
  // The gradient of a point's marginals q is the sum of two messages, h; that of its logits, which it writes, is
  // q * (h - <q, h>). Adds that to `total`, too, unless it is null.
  void (*retreat)(int width, const float* marginals, const Message& first, const Message& second, float* gradient,
                  float* total, std::size_t begin, std::size_t end);
  // The sum of a[i] * b[i] over [begin, end).
  double (*dot)(const float* a, const float* b, std::size_t begin, std::size_t end);
};

}  // namespace crfasrnn
