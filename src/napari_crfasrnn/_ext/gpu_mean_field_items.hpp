// The item of the mean field: from messages to the marginals of the next iteration.
#pragma once

#include <cstring>

#include "gpu_filter_items.hpp"

namespace crfasrnn::gpu {

// e^x for x <= 0 to about 1 ulp, the same bits on host and device: 2^n times a polynomial in the rest.
CRFASRNN_HD float exp_of_negative(float x) {
  if (!(x > -87.0F)) return x < 0.0F ? 0.0F : x;  // underflow; NaN stays NaN
  const float n = std::rint(x * 1.44269504F);
  float r = std::fmaf(n, -0.693359375F, x);
  r = std::fmaf(n, 2.12194440e-4F, r);
  float y = 1.0F / 5040.0F;
  y = std::fmaf(y, r, 1.0F / 720.0F);
  y = std::fmaf(y, r, 1.0F / 120.0F);
  y = std::fmaf(y, r, 1.0F / 24.0F);
  y = std::fmaf(y, r, 1.0F / 6.0F);
  y = std::fmaf(y, r, 0.5F);
  y = std::fmaf(y, r, 1.0F);
  y = std::fmaf(y, r, 1.0F);
  const std::int32_t bits = (static_cast<std::int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return y * power;
}

// One pass over the points: messages of both kernels, weights and compatibility, and the softmax
// that the next iteration splats. A block works on `block_rows` points, with one thread for each
// pack of labels.
template <int P>
struct UpdateMarginals {
  static constexpr int n_phases = 4;
  struct Local {
    Pack<P> spatial;
    Pack<P> bilateral;
    Pack<P> state;
  };

  Corners spatial;
  Corners bilateral;
  const float* spatial_after;    // [N] or null
  const float* bilateral_after;  // [N] or null
  const float* unary;            // [N, width]
  const float* maps;             // [2, L, width]: spatial, bilateral; from the row's label to the column's
  const std::int32_t* is_diagonal;  // whether both maps are, and products of matrices can be saved
  float* state;                  // [N, width]: the logits, written in the last iteration
  float* marginals;              // [N, width]: written in all others
  std::size_t n_points;
  int n_labels;
  int width;
  int n_packs;
  int block_rows;
  bool is_first;  // the state is the unary
  bool is_last;

  CRFASRNN_HD std::size_t n_scratch() const {
    return static_cast<std::size_t>(block_rows) * static_cast<std::size_t>(2 * width + 2 * n_packs);
  }

  CRFASRNN_HD void phase(int k, std::size_t block, int q, int y, Local& own, float* scratch) const {
    const std::size_t p = block * static_cast<std::size_t>(block_rows) + static_cast<std::size_t>(y);
    if (p >= n_points) return;
    float* spatial_tile = scratch + y * width;                             // [block_rows, width]
    float* bilateral_tile = spatial_tile + block_rows * width;             // [block_rows, width]
    float* highest = scratch + 2 * block_rows * width + y * n_packs;       // [block_rows, n_packs]
    float* sums = highest + block_rows * n_packs;                          // [block_rows, n_packs]
    if (k == 0) {
      if (!is_first) take_messages(p, q, own, spatial_tile, bilateral_tile);
    } else if (k == 1) {
      update_state(p, q, own, spatial_tile, bilateral_tile);
      if (is_last) {
        store_pack<P>(state + p * static_cast<std::size_t>(width) + q * P, own.state);
      } else {
        float best = own.state.v[0];
        CRFASRNN_UNROLL
        for (int i = 1; i < P; ++i) best = q * P + i < n_labels ? std::fmax(best, own.state.v[i]) : best;
        highest[q] = best;
      }
    } else if (is_last) {
      return;
    } else if (k == 2) {
      float best = highest[0];
      for (int i = 1; i < n_packs; ++i) best = std::fmax(best, highest[i]);
      float sum = 0.0F;
      CRFASRNN_UNROLL
      for (int i = 0; i < P; ++i) {
        own.state.v[i] = q * P + i < n_labels ? exp_of_negative(own.state.v[i] - best) : 0.0F;
        sum += own.state.v[i];
      }
      sums[q] = sum;
    } else {
      float sum = sums[0];
      for (int i = 1; i < n_packs; ++i) sum += sums[i];
      const float scale = 1.0F / sum;
      CRFASRNN_UNROLL
      for (int i = 0; i < P; ++i) own.state.v[i] *= scale;
      store_pack<P>(marginals + p * static_cast<std::size_t>(width) + q * P, own.state);
    }
  }

  CRFASRNN_HD void take_messages(std::size_t p, int q, Local& own, float* spatial_tile, float* bilateral_tile) const {
    own.spatial = spatial.slice<P>(p, q);
    own.bilateral = bilateral.slice<P>(p, q);
    const float s = spatial_after != nullptr ? spatial_after[p] : 1.0F;
    const float b = bilateral_after != nullptr ? bilateral_after[p] : 1.0F;
    CRFASRNN_UNROLL
    for (int i = 0; i < P; ++i) {
      own.spatial.v[i] *= s;
      own.bilateral.v[i] *= b;
    }
    store_pack<P>(spatial_tile + q * P, own.spatial);
    store_pack<P>(bilateral_tile + q * P, own.bilateral);
  }

  CRFASRNN_HD void update_state(std::size_t p, int q, Local& own, const float* spatial_tile,
                                const float* bilateral_tile) const {
    own.state = load_pack<P>(unary + p * static_cast<std::size_t>(width) + q * P);
    if (is_first) return;
    const float* bilateral_map = maps + n_labels * width;
    Pack<P> message = zero_pack<P>();
    if (*is_diagonal != 0) {
      CRFASRNN_UNROLL
      for (int i = 0; i < P; ++i) {
        const int label = q * P + i;
        if (label >= n_labels) continue;
        const int at = label * width + label;
        message.v[i] = std::fmaf(bilateral_map[at], own.bilateral.v[i], maps[at] * own.spatial.v[i]);
      }
    } else {
      for (int from = 0; from < n_labels; ++from) {
        add_scaled(message, spatial_tile[from], load_pack<P>(maps + from * width + q * P));
        add_scaled(message, bilateral_tile[from], load_pack<P>(bilateral_map + from * width + q * P));
      }
    }
    CRFASRNN_UNROLL
    for (int i = 0; i < P; ++i) own.state.v[i] -= message.v[i];
  }
};

}  // namespace crfasrnn::gpu
