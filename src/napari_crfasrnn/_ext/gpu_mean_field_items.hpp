// Items of the mean field: logits and matrices in, messages to marginals, logits out.
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

// Labels of an image as planes, image after image: logits as callers have them.
template <class T>
struct Planes {
  T* values;                // [B, L, n]
  std::uint32_t n_pixels;   // of an image
  int n_labels;

  // The value of label 0 at a point; that of the next label is n_pixels further.
  CRFASRNN_HD T* at(std::size_t p) const {
    const std::uint32_t image = static_cast<std::uint32_t>(p) / n_pixels;
    const std::uint32_t pixel = static_cast<std::uint32_t>(p) - image * n_pixels;
    return values + static_cast<std::size_t>(image) * static_cast<std::size_t>(n_labels) * n_pixels + pixel;
  }
};

// How a block works on `block_rows` points with one thread for each pack of labels. Where rows meet planes,
// threads take one row of a tile in shared memory each, neighbouring threads neighbouring points.
struct RowsOfBlock {
  std::size_t n_points;
  int n_labels;
  int width;
  int n_packs;
  int block_rows;

  CRFASRNN_HD std::size_t point(std::size_t block, int row) const {
    return block * static_cast<std::size_t>(block_rows) + static_cast<std::size_t>(row);
  }
  CRFASRNN_HD int thread(int q, int y) const { return y * n_packs + q; }
  // An odd distance from row to row: neighbouring rows lie in different banks.
  CRFASRNN_HD int tile_stride() const { return width | 1; }

  // Call body(label, place in the tile, offset in the planes) for the labels that this thread moves.
  template <class Body>
  CRFASRNN_HD void for_tile(std::size_t block, int q, int y, std::size_t n_pixels, const Body& body) const {
    const int own = thread(q, y);
    const int row = own % block_rows;
    if (point(block, row) >= n_points) return;
    for (int label = own / block_rows; label < n_labels; label += n_packs) {
      body(point(block, row), row * tile_stride() + label, static_cast<std::size_t>(label) * n_pixels);
    }
  }
};

// The softmax of a row, between whose three steps all threads of the row meet.
template <int P>
struct RowSoftmax {
  int n_labels;
  int n_packs;
  float* highest;  // [n_packs]
  float* sums;     // [n_packs]

  CRFASRNN_HD void find_highest(int q, const Pack<P>& state) const {
    float best = state.v[0];
    CRFASRNN_UNROLL
    for (int i = 1; i < P; ++i) best = q * P + i < n_labels ? std::fmax(best, state.v[i]) : best;
    highest[q] = best;
  }
  CRFASRNN_HD void exponentiate(int q, Pack<P>& state) const {
    float best = highest[0];
    for (int i = 1; i < n_packs; ++i) best = std::fmax(best, highest[i]);
    float sum = 0.0F;
    CRFASRNN_UNROLL
    for (int i = 0; i < P; ++i) {
      state.v[i] = q * P + i < n_labels ? exp_of_negative(state.v[i] - best) : 0.0F;
      sum += state.v[i];
    }
    sums[q] = sum;
  }
  CRFASRNN_HD void normalise(Pack<P>& state) const {
    float sum = sums[0];
    for (int i = 1; i < n_packs; ++i) sum += sums[i];
    const float scale = 1.0F / sum;
    CRFASRNN_UNROLL
    for (int i = 0; i < P; ++i) state.v[i] *= scale;
  }
};

// Both matrices as the iterations read them: transposed, in rows of `width` floats, and whether they are
// diagonal, so that products of matrices can be saved. One block.
struct LoadMaps {
  static constexpr int n_phases = 2;
  struct Local {};

  const float* spatial;    // [L, L], from the column's label to the row's
  const float* bilateral;  // [L, L]
  RowsOfBlock rows;
  float* maps;                // [2, L, width]: spatial, bilateral; from the row's label to the column's
  std::int32_t* is_diagonal;  // [1]

  CRFASRNN_HD void phase(int k, std::size_t, int q, int y, Local&, float* scratch) const {
    auto* found = reinterpret_cast<std::int32_t*>(scratch);  // [threads]
    const int n_threads = rows.n_packs * rows.block_rows;
    const int own = rows.thread(q, y);
    if (k == 0) {
      std::int32_t diagonal = 1;
      for (int i = own; i < 2 * rows.n_labels * rows.width; i += n_threads) {
        const int to = i % rows.width;
        const int row = i / rows.width;
        const int from = row % rows.n_labels;
        const float* matrix = row < rows.n_labels ? spatial : bilateral;
        const float value = to < rows.n_labels ? matrix[to * rows.n_labels + from] : 0.0F;
        maps[i] = value;
        if (to != from && !(value == 0.0F)) diagonal = 0;
      }
      found[own] = diagonal;
    } else if (own == 0) {
      std::int32_t diagonal = 1;
      for (int t = 0; t < n_threads; ++t) diagonal &= found[t];
      *is_diagonal = diagonal;
    }
  }
};

// Logits from planes to rows, scaled, and the softmax that the first iteration splats.
template <int P>
struct LoadLogits {
  static constexpr int n_phases = 4;
  struct Local {
    Pack<P> state;
  };

  Planes<const float> unary;
  float scale;
  RowsOfBlock rows;
  float* logits;     // [N, width]
  float* marginals;  // [N, width]

  CRFASRNN_HD std::size_t n_scratch() const {
    return static_cast<std::size_t>(rows.block_rows) * static_cast<std::size_t>(rows.tile_stride() + 2 * rows.n_packs);
  }

  CRFASRNN_HD void phase(int k, std::size_t block, int q, int y, Local& own, float* scratch) const {
    float* tile = scratch;  // [block_rows, tile_stride]
    if (k == 0) {
      rows.for_tile(block, q, y, unary.n_pixels, [&](std::size_t p, int place, std::size_t offset) {
        tile[place] = unary.at(p)[offset];
      });
      return;
    }
    const std::size_t p = rows.point(block, y);
    if (p >= rows.n_points) return;
    float* highest = scratch + rows.block_rows * rows.tile_stride() + y * rows.n_packs;  // [block_rows, n_packs]
    const RowSoftmax<P> softmax{rows.n_labels, rows.n_packs, highest, highest + rows.block_rows * rows.n_packs};
    const std::size_t at = row_offset(p, rows.width) + static_cast<std::size_t>(q * P);
    if (k == 1) {
      CRFASRNN_UNROLL
      for (int i = 0; i < P; ++i) {
        own.state.v[i] = q * P + i < rows.n_labels ? scale * tile[y * rows.tile_stride() + q * P + i] : 0.0F;
      }
      store_pack<P>(logits + at, own.state);
      softmax.find_highest(q, own.state);
    } else if (k == 2) {
      softmax.exponentiate(q, own.state);
    } else {
      softmax.normalise(own.state);
      store_pack<P>(marginals + at, own.state);
    }
  }
};

// One pass over the points: messages of both kernels, weights and compatibility, and the softmax that the
// next iteration splats, or, after the last one, the logits as planes.
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
  const float* logits;           // [N, width]
  const float* maps;             // [2, L, width], of LoadMaps
  const std::int32_t* is_diagonal;
  RowsOfBlock rows;
  float* marginals;   // [N, width]
  Planes<float> out;  // written instead where it is not null
  float out_scale;

  CRFASRNN_HD std::size_t n_scratch() const {
    return static_cast<std::size_t>(rows.block_rows) * static_cast<std::size_t>(2 * rows.width + 2 * rows.n_packs);
  }

  CRFASRNN_HD void phase(int k, std::size_t block, int q, int y, Local& own, float* scratch) const {
    const bool is_last = out.values != nullptr;
    // The messages' tiles are read for the last time in phase 1, and hold a tile of logits from then on.
    float* tile = scratch;  // [block_rows, tile_stride]
    if (k == 3 && is_last) {
      rows.for_tile(block, q, y, out.n_pixels, [&](std::size_t p, int place, std::size_t offset) {
        out.at(p)[offset] = tile[place];
      });
      return;
    }
    const std::size_t p = rows.point(block, y);
    if (p >= rows.n_points) return;
    const int width = rows.width;
    float* spatial_tile = scratch + y * width;                                          // [block_rows, width]
    float* bilateral_tile = spatial_tile + rows.block_rows * width;                     // [block_rows, width]
    float* highest = scratch + 2 * rows.block_rows * width + y * rows.n_packs;          // [block_rows, n_packs]
    const RowSoftmax<P> softmax{rows.n_labels, rows.n_packs, highest, highest + rows.block_rows * rows.n_packs};
    if (k == 0) {
      take_messages(p, q, own, spatial_tile, bilateral_tile);
    } else if (k == 1) {
      update_state(p, q, own, spatial_tile, bilateral_tile);
      if (!is_last) softmax.find_highest(q, own.state);
    } else if (is_last) {
      CRFASRNN_UNROLL
      for (int i = 0; i < P; ++i) {
        if (q * P + i < rows.n_labels) tile[y * rows.tile_stride() + q * P + i] = out_scale * own.state.v[i];
      }
    } else if (k == 2) {
      softmax.exponentiate(q, own.state);
    } else {
      softmax.normalise(own.state);
      store_pack<P>(marginals + row_offset(p, width) + q * P, own.state);
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
    const int width = rows.width;
    const int n_labels = rows.n_labels;
    own.state = load_pack<P>(logits + row_offset(p, width) + q * P);
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
