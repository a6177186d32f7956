// Items of building a lattice: the box around the points, simplices, numbers of vertices, neighbours.
#pragma once

#include "gpu_items.hpp"

namespace crfasrnn::gpu {

// Map features to the hyperplane whose d + 1 coordinates sum to 0 (p. 5 in Adams et al. 2010).
// D is d where it is known to the compiler, else 0.
template <int D>
CRFASRNN_HD void elevate(const float* features, int dims, const Scales& scales, float* e) {
  const int d = D > 0 ? D : dims;
  float sum = 0.0F;
  CRFASRNN_UNROLL
  for (int j = d; j > 0; --j) {
    const float c = features[j - 1] * scales.of[j - 1];
    e[j] = sum - static_cast<float>(j) * c;
    sum += c;
  }
  e[0] = sum;
}

// The box around all elevated points. Threads stride over the points, blocks reduce, and the host
// reduces what the blocks found: row b of `found` is [low | high | out of range, not finite] for the
// d + 1 coordinates.
template <int D>
struct Measure {
  static constexpr int n_phases = 2;
  static constexpr int capacity = (D > 0 ? D : max_dims) + 1;
  static constexpr int n_threads = 128;
  CRFASRNN_HD static constexpr int row(int corners) { return 2 * corners + 2; }
  struct Local {};

  const float* features;  // [N, d]
  std::size_t n_points;
  int n_dims;
  Scales scales;
  std::size_t n_blocks;
  std::int32_t* found;  // [n_blocks, row(d + 1)]

  CRFASRNN_HD void phase(int k, std::size_t block, int x, int, Local&, float* scratch) const {
    auto* shared = reinterpret_cast<std::int32_t*>(scratch);  // [2 * corners + 2, n_threads]
    const int corners = (D > 0 ? D : n_dims) + 1;
    const int n_found = row(corners);
    if (k == 0) {
      std::int32_t low[capacity];
      std::int32_t high[capacity];
      std::int32_t outside = 0;
      std::int32_t not_finite = 0;
      CRFASRNN_UNROLL
      for (int j = 0; j < corners; ++j) {
        low[j] = INT32_MAX;
        high[j] = INT32_MIN;
      }
      for (std::size_t p = block * n_threads + static_cast<std::size_t>(x); p < n_points; p += n_blocks * n_threads) {
        float e[capacity];
        const float* f = features + p * static_cast<std::size_t>(corners - 1);
        elevate<D>(f, n_dims, scales, e);
        bool usable = true;
        CRFASRNN_UNROLL
        for (int j = 0; j < corners; ++j) usable = usable && e[j] <= coordinate_limit && e[j] >= -coordinate_limit;
        if (usable) {
          CRFASRNN_UNROLL
          for (int j = 0; j < corners; ++j) {
            const auto down = static_cast<std::int32_t>(std::floor(e[j]));
            const auto up = static_cast<std::int32_t>(std::ceil(e[j]));
            low[j] = down < low[j] ? down : low[j];
            high[j] = up > high[j] ? up : high[j];
          }
        } else {
          outside = 1;
          for (int j = 0; j + 1 < corners; ++j) {
            if (!(f[j] - f[j] == 0.0F)) not_finite = 1;
          }
        }
      }
      CRFASRNN_UNROLL
      for (int j = 0; j < corners; ++j) {
        shared[j * n_threads + x] = low[j];
        shared[(corners + j) * n_threads + x] = high[j];
      }
      shared[2 * corners * n_threads + x] = outside;
      shared[(2 * corners + 1) * n_threads + x] = not_finite;
    } else if (x < n_found) {
      // Each from a place of its own: rows begin in the same bank of shared memory.
      std::int32_t best = shared[x * n_threads + x];
      for (int t = 1; t < n_threads; ++t) {
        const std::int32_t other = shared[x * n_threads + (x + t) % n_threads];
        best = (x < corners) == (other < best) ? other : best;
      }
      found[block * static_cast<std::size_t>(n_found) + static_cast<std::size_t>(x)] = best;
    }
  }
};

// The simplex around a point, and the keys of its corners.
template <int D>
struct FindSimplex {
  static constexpr int capacity = (D > 0 ? D : max_dims) + 1;

  const float* features;  // [N, d]
  Scales scales;
  KeyLayout layout;
  std::size_t n_entries;
  std::uint64_t* words;  // [n_words, E]
  float* weight_of;      // [N, d + 1]

  CRFASRNN_HD void operator()(std::size_t p, int) const {
    const int d = D > 0 ? D : layout.n_dims;
    float e[capacity];
    elevate<D>(features + p * static_cast<std::size_t>(d), d, scales, e);

    // The nearest point whose coordinates are multiples of d + 1; ties to even.
    const float down = 1.0F / static_cast<float>(d + 1);
    const float up = static_cast<float>(d + 1);
    float origin[capacity];
    float residual[capacity];
    int rank[capacity];
    float excess = 0.0F;
    CRFASRNN_UNROLL
    for (int j = 0; j <= d; ++j) {
      const float rounded = std::rint(e[j] * down);
      origin[j] = rounded * up;
      excess += rounded;
      residual[j] = e[j] - origin[j];
      rank[j] = 0;
    }
    // rank = how many residuals are larger; of equal ones the earlier coordinate goes first.
    CRFASRNN_UNROLL
    for (int i = 0; i < d; ++i) {
      CRFASRNN_UNROLL
      for (int j = i + 1; j <= d; ++j) {
        const int less = residual[i] < residual[j] ? 1 : 0;
        rank[i] += less;
        rank[j] += 1 - less;
      }
    }
    // When the rounded coordinates do not sum to 0, walk back along those that rounding moved most.
    const int n_over = static_cast<int>(excess);
    CRFASRNN_UNROLL
    for (int j = 0; j <= d; ++j) {
      const int moved = rank[j] + n_over;
      const int wrap = moved < 0 ? 1 : moved > d ? -1 : 0;
      rank[j] = moved + wrap * (d + 1);
      origin[j] += static_cast<float>(wrap) * up;
      residual[j] = (e[j] - origin[j]) * down;
    }
    // Barycentric coordinates are differences of the residuals in the order of rank (p. 10).
    // Selected, not scattered: an index known at run time would send the arrays to local memory.
    float sorted[capacity] = {};
    CRFASRNN_UNROLL
    for (int r = 0; r <= d; ++r) {
      float x = 0.0F;
      CRFASRNN_UNROLL
      for (int j = 0; j <= d; ++j) x = rank[j] == r ? residual[j] : x;
      sorted[r] = x;
    }
    float* weight = weight_of + p * static_cast<std::size_t>(d + 1);
    weight[0] = sorted[d] + (1.0F - sorted[0]);
    CRFASRNN_UNROLL
    for (int k = 1; k <= d; ++k) weight[k] = sorted[d - k] - sorted[d + 1 - k];

    // The corner of remainder k lies k steps from the origin; each step has taken d + 1 away from
    // one of the k coordinates of the last ranks.
    const std::uint64_t group = p / layout.points_per_group;
    for (int w = 0; w < layout.n_words; ++w) {
      std::uint64_t* row = words + static_cast<std::size_t>(w) * n_entries + p * static_cast<std::size_t>(d + 1);
      CRFASRNN_UNROLL
      for (int k = 0; k <= d; ++k) {
        std::uint64_t key = w == layout.group_word ? group << layout.group_shift : 0;
        CRFASRNN_UNROLL
        for (int j = 0; j < d; ++j) {
          const int coordinate = static_cast<int>(origin[j]) + k - (rank[j] > d - k ? d + 1 : 0);
          const auto field = static_cast<std::uint64_t>(coordinate - layout.low[j]);
          if (layout.word[j] == w) key += field << layout.shift[j];
        }
        row[k] = key;
      }
    }
  }
};

struct Iota {
  std::uint32_t* order;  // [E]

  CRFASRNN_HD void operator()(std::size_t i, int) const { order[i] = static_cast<std::uint32_t>(i); }
};

struct GatherWord {
  const std::uint64_t* word;   // [E]
  const std::uint32_t* order;  // [E]
  std::uint64_t* keys;         // [E]

  CRFASRNN_HD void operator()(std::size_t i, int) const { keys[i] = word[order[i]]; }
};

// The keys of all entries in sorted order. Keys of one word were sorted themselves; of longer ones
// only the order was.
struct SortedKeys {
  int n_words;
  std::size_t n_entries;
  const std::uint64_t* sorted;  // [E], only for n_words == 1
  const std::uint64_t* words;   // [n_words, E]
  const std::uint32_t* order;   // [E]

  CRFASRNN_HD std::uint64_t word(std::size_t i, int w) const {
    return n_words == 1 ? sorted[i] : words[static_cast<std::size_t>(w) * n_entries + order[i]];
  }
};

// 1 at the first entry of every vertex.
struct MarkHeads {
  SortedKeys keys;
  std::uint32_t* number;  // [E]

  CRFASRNN_HD void operator()(std::size_t i, int) const {
    bool head = i == 0;
    for (int w = 0; w < keys.n_words && !head; ++w) head = keys.word(i, w) != keys.word(i - 1, w);
    number[i] = head ? 1 : 0;
  }
};

// From numbers (counted from 1) in sorted order: corners, the entries of every vertex, its key.
struct PlaceEntries {
  SortedKeys keys;
  const std::uint32_t* number;  // [E]
  const float* weight_of;       // [N, d + 1]
  std::uint32_t n_corners;
  std::uint32_t* vertex_of;     // [N, d + 1]
  Entry* entries;               // [E]
  std::uint32_t* start;         // [M + 1]
  std::uint64_t* vertex_keys;   // [M, n_words]

  CRFASRNN_HD void operator()(std::size_t i, int) const {
    const std::uint32_t e = keys.order[i];
    const std::uint32_t v = number[i] - 1;
    vertex_of[e] = v;
    entries[i] = {e / n_corners, weight_of[e]};
    if (i == 0 || number[i - 1] != number[i]) {
      start[v] = static_cast<std::uint32_t>(i);
      for (int w = 0; w < keys.n_words; ++w) {
        vertex_keys[static_cast<std::size_t>(v) * static_cast<std::size_t>(keys.n_words) + static_cast<std::size_t>(w)] =
            keys.word(i, w);
      }
    }
    if (i + 1 == keys.n_entries) start[v + 1] = static_cast<std::uint32_t>(keys.n_entries);
  }
};

// Low half: 1 at the first entry of every segment; high half: 1 at the second segment of a vertex.
struct MarkSegments {
  const std::uint32_t* number;  // [E]
  const std::uint32_t* start;   // [M + 1]
  std::uint64_t* segment;       // [E]

  CRFASRNN_HD void operator()(std::size_t i, int) const {
    const std::uint32_t offset = static_cast<std::uint32_t>(i) - start[number[i] - 1];
    const std::uint64_t first = offset % segment_length == 0 ? 1 : 0;
    const std::uint64_t second = offset == segment_length ? 1 : 0;
    segment[i] = first | second << 32;
  }
};

struct PlaceSegments {
  const std::uint32_t* number;   // [E]
  const std::uint32_t* start;    // [M + 1]
  const std::uint64_t* segment;  // [E], counted from 1
  std::size_t n_entries;
  std::uint32_t* segment_begin;   // [S + 1]
  std::uint32_t* segment_target;  // [S]: the vertex, marked when it has other segments
  LongVertex* long_vertices;

  CRFASRNN_HD void operator()(std::size_t i, int) const {
    const std::uint32_t v = number[i] - 1;
    const std::uint32_t offset = static_cast<std::uint32_t>(i) - start[v];
    const auto s = static_cast<std::uint32_t>(segment[i] & 0xFFFFFFFFU) - 1;
    if (offset % segment_length == 0) {
      const std::uint32_t degree = start[v + 1] - start[v];
      segment_begin[s] = static_cast<std::uint32_t>(i);
      segment_target[s] = degree > segment_length ? v | long_mark : v;
      if (offset == segment_length) {
        const auto l = static_cast<std::uint32_t>(segment[i] >> 32) - 1;
        long_vertices[l] = {v, s - 1, (degree + segment_length - 1) / segment_length};
      }
    }
    if (i + 1 == n_entries) segment_begin[s + 1] = static_cast<std::uint32_t>(n_entries);
  }
};

// The vertex one step up an axis, by binary search; who is found learns of the finder. Words is the
// length of a key where it is 1, else 0: a key of one word stays in a register.
template <int Words>
struct LinkNeighbours {
  KeyLayout layout;
  std::uint32_t n_vertices;
  const std::uint64_t* vertex_keys;  // [M, n_words]
  Link* links;                       // [d + 1, M]; `absent` beforehand

  CRFASRNN_HD void operator()(std::size_t v, int axis) const {
    // One step along the axis: +1 in every coordinate but -d in its own. No field overflows.
    std::uint64_t wanted[Words > 0 ? Words : max_words];
    const int n = Words > 0 ? Words : layout.n_words;
    for (int w = 0; w < n; ++w) wanted[w] = vertex_keys[v * static_cast<std::size_t>(n) + static_cast<std::size_t>(w)];
    for (int j = 0; j < layout.n_dims; ++j) {
      const int step = j == axis ? -layout.n_dims : 1;
      wanted[Words == 1 ? 0 : layout.word[j]] += static_cast<std::uint64_t>(static_cast<std::int64_t>(step)) << layout.shift[j];
    }
    std::uint32_t first = 0;
    std::uint32_t last = n_vertices;
    while (first < last) {
      const std::uint32_t middle = first + (last - first) / 2;
      const std::uint64_t* key = vertex_keys + static_cast<std::size_t>(middle) * static_cast<std::size_t>(n);
      int w = 0;
      while (w + 1 < n && key[w] == wanted[w]) ++w;
      if (key[w] < wanted[w]) {
        first = middle + 1;
      } else {
        last = middle;
      }
    }
    bool found = first < n_vertices;
    for (int w = 0; w < n && found; ++w) {
      found = vertex_keys[static_cast<std::size_t>(first) * static_cast<std::size_t>(n) + static_cast<std::size_t>(w)] ==
              wanted[w];
    }
    if (!found) return;
    Link* own_axis = links + static_cast<std::size_t>(axis) * n_vertices;
    own_axis[v].next = first;
    own_axis[first].previous = static_cast<std::uint32_t>(v);
  }
};

}  // namespace crfasrnn::gpu
