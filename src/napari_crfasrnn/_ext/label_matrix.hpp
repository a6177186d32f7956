// A matrix over labels, as the mean field applies it to the vertices of a lattice.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include "kernels.hpp"
#include "memory.hpp"

namespace crfasrnn {

// What a matrix [L, L] row-major does to messages that are subtracted. A multiple of the identity (Potts)
// costs nothing at the vertices: it becomes a factor of the message.
struct LabelMatrix {
  LabelMap map;
  float scale = -1.0F;
  Buffer<float> weights;

  LabelMatrix(std::span<const float> matrix, int n_labels, int width) {
    const auto n = static_cast<std::size_t>(n_labels);
    const auto w = static_cast<std::size_t>(width);
    bool diagonal = true;
    bool uniform = true;
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        if (i != j && matrix[i * n + j] != 0.0F) diagonal = false;
      }
      if (matrix[i * n + i] != matrix[0]) uniform = false;
    }
    if (diagonal && uniform) {
      scale = -matrix[0];
      return;
    }
    weights = Buffer<float>(diagonal ? w : n * w);
    std::fill(weights.data(), weights.data() + weights.size(), 0.0F);
    for (std::size_t i = 0; i < n; ++i) {
      if (diagonal) {
        weights[i] = matrix[i * n + i];
      } else {
        for (std::size_t j = 0; j < n; ++j) weights[j * w + i] = matrix[i * n + j];
      }
    }
    map = {diagonal ? LabelMap::Kind::diagonal : LabelMap::Kind::full, weights.data(), n_labels};
  }
};

// The largest sum of absolute values in a row: no message can be larger when the kernel averages.
inline float largest_row_sum(std::span<const float> matrix, int n_labels) {
  const auto n = static_cast<std::size_t>(n_labels);
  float bound = 0.0F;
  for (std::size_t i = 0; i < n; ++i) {
    float sum = 0.0F;
    for (std::size_t j = 0; j < n; ++j) sum += std::abs(matrix[i * n + j]);
    bound = std::max(bound, sum);
  }
  return bound;
}

// Shifted logits may be that large before exponentials need their maximum taken away first.
inline constexpr float safe_bound = 40.0F;

}  // namespace crfasrnn
