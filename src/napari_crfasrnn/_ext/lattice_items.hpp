// What one thread of the CUDA backend does, item by item: every kernel of lattice_cuda.cu runs a
// struct from here, and so do the host loops of lattice_items.cpp, with which machines without a
// GPU test them. Float arithmetic is free of contraction (--fmad=false, -ffp-contract=off) but for
// the std::fmaf that is written out, so host and device compute the same bits.
//
// Letters: N points, d feature dimensions, M vertices, V values per point, E = N (d + 1) entries.
// A row of values is `width` floats, a multiple of the P floats that one thread moves at a time.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define CRFASRNN_HD __host__ __device__ inline
#else
#define CRFASRNN_HD inline
#endif
#if defined(__CUDA_ARCH__)
#define CRFASRNN_UNROLL _Pragma("unroll")
#define CRFASRNN_UNROLL_BY_4 _Pragma("unroll 4")
#else
#define CRFASRNN_UNROLL
#define CRFASRNN_UNROLL_BY_4
#endif

namespace crfasrnn::gpu {

inline constexpr int max_dims = 16;
inline constexpr int max_corners = max_dims + 1;
// Coordinates up to 2^20 with a margin take 22 bits: two to a word, and the group apart.
inline constexpr int max_words = max_dims / 2 + 1;
inline constexpr float coordinate_limit = 1048576.0F;
inline constexpr std::uint32_t absent = 0xFFFFFFFFU;
// Entries that one thread adds up. In flat regions a vertex has tens of thousands of points.
inline constexpr std::uint32_t segment_length = 64;
inline constexpr std::uint32_t long_mark = 0x80000000U;

struct Scales {
  float of[max_dims];
};

// Where each coordinate sits in a vertex key of `n_words` words, the first the most significant:
// sorted keys are in lexicographic order of (group, coordinate 0, coordinate 1, ...). The last
// coordinate is implied. Points of different groups share no vertex: images of a batch.
struct KeyLayout {
  int n_dims;
  int n_words;
  int low[max_dims];
  int word[max_dims];
  int shift[max_dims];
  int group_word;
  int group_shift;
  int bits[max_words];  // in use, per word
  std::uint32_t points_per_group;
};

// One contribution of a point to a vertex.
struct alignas(8) Entry {
  std::uint32_t point;
  float weight;
};

// A vertex whose entries fill several segments.
struct LongVertex {
  std::uint32_t vertex;
  std::uint32_t first_segment;
  std::uint32_t n_segments;
};

// P floats that move in one instruction.
template <int P>
struct alignas(4 * P) Pack {
  float v[P];
};

template <int P>
CRFASRNN_HD Pack<P> zero_pack() {
  Pack<P> out;
  CRFASRNN_UNROLL
  for (int i = 0; i < P; ++i) out.v[i] = 0.0F;
  return out;
}

template <int P>
CRFASRNN_HD Pack<P> load_pack(const float* p) {
  return *reinterpret_cast<const Pack<P>*>(p);
}

template <int P>
CRFASRNN_HD void store_pack(float* p, const Pack<P>& x) {
  *reinterpret_cast<Pack<P>*>(p) = x;
}

// sum += scale * x
template <int P>
CRFASRNN_HD void add_scaled(Pack<P>& sum, float scale, const Pack<P>& x) {
  CRFASRNN_UNROLL
  for (int i = 0; i < P; ++i) sum.v[i] = std::fmaf(scale, x.v[i], sum.v[i]);
}

template <int P>
CRFASRNN_HD void add(Pack<P>& sum, const Pack<P>& x) {
  CRFASRNN_UNROLL
  for (int i = 0; i < P; ++i) sum.v[i] += x.v[i];
}

// ---------------------------------------------------------------------------------------- build

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
// reduces what the blocks found: row b of `found` is [low | high | out of range, not finite].
template <int D>
struct Measure {
  static constexpr int n_phases = 2;
  static constexpr int capacity = (D > 0 ? D : max_dims) + 1;
  static constexpr int n_threads = 128;
  static constexpr int row = 2 * max_corners + 2;
  struct Local {};

  const float* features;  // [N, d]
  std::size_t n_points;
  int n_dims;
  Scales scales;
  std::size_t n_blocks;
  std::int32_t* found;  // [n_blocks, row]

  CRFASRNN_HD void phase(int k, std::size_t block, int x, int, Local&, float* scratch) const {
    auto* shared = reinterpret_cast<std::int32_t*>(scratch);  // [2 * corners + 2, n_threads]
    const int corners = (D > 0 ? D : n_dims) + 1;
    const int n_found = 2 * corners + 2;
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
      std::int32_t best = shared[x * n_threads];
      for (int t = 1; t < n_threads; ++t) {
        const std::int32_t other = shared[x * n_threads + t];
        best = (x < corners) == (other < best) ? other : best;
      }
      found[block * row + static_cast<std::size_t>(x)] = best;
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
  std::uint32_t* neighbours;         // [d + 1, M, 2]: one step down, one step up; `absent` beforehand

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
    std::uint32_t* own_axis = neighbours + static_cast<std::size_t>(axis) * n_vertices * 2;
    own_axis[2 * v + 1] = first;
    own_axis[2 * static_cast<std::size_t>(first)] = static_cast<std::uint32_t>(v);
  }
};

// --------------------------------------------------------------------------------------- filter

// What goes in: rows of `stride` floats. Whole rows are padded and aligned to packs of P.
template <int P, bool Whole>
struct InputRows {
  const float* rows;
  std::size_t stride;
  int n_values;

  CRFASRNN_HD Pack<P> load(std::size_t row, int q) const {
    const float* p = rows + row * stride + q * P;
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
    float* row = (target & long_mark) != 0 ? parts + s * static_cast<std::size_t>(width)
                                           : vertices + target * static_cast<std::size_t>(width);
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
        add(sum, load_pack<P>(parts + (own.first_segment + i) * static_cast<std::size_t>(width) + q * P));
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
      store_pack<P>(vertices + own.vertex * static_cast<std::size_t>(width) + q * P, sum);
    }
  }
};

// out = centre + (previous + next) / 2 along one axis.
template <int P>
struct Blur {
  const std::uint32_t* neighbours;  // [M, 2]
  const float* vertices;            // [M, width]
  float* out;                       // [M, width]
  int width;

  CRFASRNN_HD void operator()(std::size_t v, int q) const {
    const std::uint32_t previous = neighbours[2 * v];
    const std::uint32_t next = neighbours[2 * v + 1];
    const std::size_t at = static_cast<std::size_t>(q * P);
    const auto w = static_cast<std::size_t>(width);
    Pack<P> centre = load_pack<P>(vertices + v * w + at);
    Pack<P> around = zero_pack<P>();
    if (previous != absent) around = load_pack<P>(vertices + previous * w + at);
    if (next != absent) add(around, load_pack<P>(vertices + next * w + at));
    add_scaled(centre, 0.5F, around);
    store_pack<P>(out + v * w + at, centre);
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
    const std::uint32_t* vertex = vertex_of + p * static_cast<std::size_t>(n_corners);
    const float* weight = weight_of + p * static_cast<std::size_t>(n_corners);
    Pack<P> sum = zero_pack<P>();
    CRFASRNN_UNROLL_BY_4
    for (int k = 0; k < n_corners; ++k) {
      add_scaled(sum, gain * weight[k], load_pack<P>(vertices + vertex[k] * static_cast<std::size_t>(width) + q * P));
    }
    return sum;
  }
};

template <int P, bool Whole>
struct Slice {
  Corners corners;
  float* out;  // [N, V]
  std::size_t stride;
  int n_values;

  CRFASRNN_HD void operator()(std::size_t p, int q) const {
    const Pack<P> sum = corners.slice<P>(p, q);
    float* row = out + p * stride + q * P;
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

// ----------------------------------------------------------------------------------- mean field

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
