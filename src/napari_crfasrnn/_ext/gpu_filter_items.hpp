// Items of filtering: splat, blur, slice.
#pragma once

#include "gpu_items.hpp"

namespace crfasrnn::gpu {

// What goes in: rows of `stride` floats. Whole rows are padded and aligned to packs of P.
template <int P, bool Whole>
struct InputRows {
  const float* rows;
  int stride;
  int n_values;

  CRFASRNN_HD Pack<P> load(std::uint32_t row, int q) const {
    const float* p = rows + row_offset(row, stride) + q * P;
    if constexpr (Whole) {
      return load_pack<P>(p);
    } else {
      Pack<P> out;
      CRFASRNN_UNROLL
      for (int i = 0; i < P; ++i) out.v[i] = q * P + i < n_values ? p[i] : 0.0F;
      return out;
    }
  }
};

// The sum of one segment of entries, in the order of the points. The only segment of a vertex is
// its value; of several, each goes to its row of `parts`, and AddLong adds those.
template <int P, bool Whole>
struct Splat {
  const std::uint32_t* segment_begin;   // [S + 1]
  const std::uint32_t* segment_target;  // [S]
  const Entry* entries;                 // [E]
  InputRows<P, Whole> values;           // [N, V]
  const float* before;                  // [N] factors on the rows of values, or null
  float* vertices;                      // [M, width]
  float* parts;                         // [S, width]
  int width;

  CRFASRNN_HD void operator()(std::size_t s, int q) const {
    const std::uint32_t begin = segment_begin[s];
    const std::uint32_t end = segment_begin[s + 1];
    Pack<P> sum = zero_pack<P>();
    CRFASRNN_UNROLL_BY_4
    for (std::uint32_t i = begin; i < end; ++i) {
      const Entry entry = entries[i];
      Pack<P> x = values.load(entry.point, q);
      if (before != nullptr) {
        const float factor = before[entry.point];
        CRFASRNN_UNROLL
        for (int k = 0; k < P; ++k) x.v[k] *= factor;
      }
      add_scaled(sum, entry.weight, x);
    }
    const std::uint32_t target = segment_target[s];
    float* row = (target & long_mark) != 0 ? parts + row_offset(s, width) : vertices + row_offset(target, width);
    store_pack<P>(row + q * P, sum);
  }
};

// One block per long vertex: `lanes` threads for each pack add every lanes-th part, then pairwise.
template <int P>
struct AddLong {
  static constexpr int lanes = 32;
  static constexpr int n_phases = 6;  // 1 + log2(lanes)
  struct Local {};

  const LongVertex* long_vertices;
  const float* parts;  // [S, width]
  float* vertices;     // [M, width]
  int width;

  CRFASRNN_HD void phase(int k, std::size_t block, int q, int lane, Local&, float* scratch) const {
    const LongVertex own = long_vertices[block];
    float* mine = scratch + lane * width + q * P;  // [lanes, width]
    if (k == 0) {
      Pack<P> sum = zero_pack<P>();
      CRFASRNN_UNROLL_BY_4
      for (std::uint32_t i = static_cast<std::uint32_t>(lane); i < own.n_segments; i += lanes) {
        add(sum, load_pack<P>(parts + row_offset(own.first_segment + i, width) + q * P));
      }
      store_pack<P>(mine, sum);
      return;
    }
    const int half = lanes >> k;
    if (lane >= half) return;
    Pack<P> sum = load_pack<P>(mine);
    add(sum, load_pack<P>(mine + half * width));
    if (k + 1 < n_phases) {
      store_pack<P>(mine, sum);
    } else {
      store_pack<P>(vertices + row_offset(own.vertex, width) + q * P, sum);
    }
  }
};

// out = centre + (previous + next) / 2 along one axis.
template <int P>
struct Blur {
  const Link* links;      // [M]
  const float* vertices;  // [M, width]
  float* out;             // [M, width]
  int width;

  CRFASRNN_HD void operator()(std::size_t v, int q) const {
    const Link link = links[v];
    const int at = q * P;
    const std::size_t own = row_offset(v, width);
    Pack<P> centre = load_pack<P>(vertices + own + at);
    Pack<P> around = zero_pack<P>();
    if (link.previous != absent) around = load_pack<P>(vertices + row_offset(link.previous, width) + at);
    if (link.next != absent) add(around, load_pack<P>(vertices + row_offset(link.next, width) + at));
    add_scaled(centre, 0.5F, around);
    store_pack<P>(out + own + at, centre);
  }
};

// What is sliced from: the corners of every point and the blurred vertices.
struct Corners {
  const std::uint32_t* vertex_of;  // [N, d + 1]
  const float* weight_of;          // [N, d + 1]
  const float* vertices;           // [M, width]
  int n_corners;
  float gain;
  int width;

  template <int P>
  CRFASRNN_HD Pack<P> slice(std::size_t p, int q) const {
    const std::size_t first = row_offset(p, n_corners);
    const std::uint32_t* vertex = vertex_of + first;
    const float* weight = weight_of + first;
    Pack<P> sum = zero_pack<P>();
    CRFASRNN_UNROLL_BY_4
    for (int k = 0; k < n_corners; ++k) {
      add_scaled(sum, gain * weight[k], load_pack<P>(vertices + row_offset(vertex[k], width) + q * P));
    }
    return sum;
  }
};

template <int P, bool Whole>
struct Slice {
  Corners corners;
  float* out;  // [N, V]
  int stride;
  int n_values;

  CRFASRNN_HD void operator()(std::size_t p, int q) const {
    const Pack<P> sum = corners.slice<P>(p, q);
    float* row = out + row_offset(p, stride) + q * P;
    if constexpr (Whole) {
      store_pack<P>(row, sum);
    } else {
      CRFASRNN_UNROLL
      for (int i = 0; i < P; ++i) {
        if (q * P + i < n_values) row[i] = sum.v[i];
      }
    }
  }
};

}  // namespace crfasrnn::gpu
