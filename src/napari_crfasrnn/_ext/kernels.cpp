// Compiled once per instruction set (see CMakeLists.txt); simd.hpp names the namespace.
//
// The simplex code (simplex.hpp) is free of fused multiply-add: every machine finds the same simplices.
// The value loops use it where the instruction set has it.
#include "kernels.hpp"

#include "packing.hpp"
#include "row_kernels.hpp"
#include "simplex.hpp"

namespace crfasrnn::CRFASRNN_ISA {
namespace {

// Call F<D> for the dimensions that images and volumes need, with the loop bounds known.
#define CRFASRNN_BY_DIMS(function, ...)      \
  switch (d) {                               \
    case 2: return function<2>(__VA_ARGS__); \
    case 3: return function<3>(__VA_ARGS__); \
    case 4: return function<4>(__VA_ARGS__); \
    case 5: return function<5>(__VA_ARGS__); \
    case 6: return function<6>(__VA_ARGS__); \
    default: return function<0>(__VA_ARGS__); \
  }

void measure(const FeatureBlock& features, int d, const float* scale, float limit, Bounds& bounds) {
  CRFASRNN_BY_DIMS(measure_dims, features, d, scale, limit, bounds)
}

void simplices(const FeatureBlock& features, std::size_t first, int d, const float* scale, SimplexBlock& block) {
  CRFASRNN_BY_DIMS(simplices_dims, features, first, d, scale, block)
}

// A long sum is taken in pieces: its rounding error grows with the length of a piece, not of the sum.
constexpr std::uint32_t piece = 128;  // a multiple of 4

// One vertex' sum of single values: four at a time, so that an addition need not wait for the one before.
template <class Term>
inline float sum_of(const SplatEntry* entry, const SplatEntry* last, Term term) {
  float total = 0.0F;
  while (last - entry >= 4) {
    const SplatEntry* const stop = last - entry > piece ? entry + piece : last - (last - entry) % 4;
    float sums[4] = {};
    for (; entry != stop; entry += 4) {
      for (int j = 0; j < 4; ++j) sums[j] += term(entry[j]);
    }
    total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  // No loop, of which compilers would make vectors.
  if (((last - entry) & 2) != 0) {
    total += term(entry[0]) + term(entry[1]);
    entry += 2;
  }
  return entry != last ? total + term(*entry) : total;
}

void splat_ones(const std::uint32_t* start, const SplatEntry* entries, float* vertices, std::size_t begin,
                std::size_t end) {
  for (std::size_t m = begin; m < end; ++m) {
    vertices[m] = sum_of(entries + start[m], entries + start[m + 1], [](const SplatEntry& entry) { return entry.weight; });
  }
}

void splat_scalars(const ScalarSum* sums, const SplatEntry* entries, const float* values, float* vertices,
                   std::size_t begin, std::size_t end) {
  const auto term = [values](const SplatEntry& entry) { return entry.weight * values[entry.point]; };
  for (std::size_t i = begin; i < end; ++i) {
#if defined(__GNUC__)
    constexpr std::size_t ahead = 16;
    if (i + ahead < end) {
      __builtin_prefetch(entries + sums[i + ahead].first);
      __builtin_prefetch(entries + sums[i + ahead].first + 8);
    }
#endif
    vertices[sums[i].vertex] = sum_of(entries + sums[i].first, entries + sums[i].last, term);
  }
}

#if defined(__GNUC__)
template <int N>
inline void fetch_row(const float* row) {
  for (int j = 0; j < N; j += 16) __builtin_prefetch(row + j);
}
template <int N>
inline void fetch_row(const Share* row) {
  for (int j = 0; j < N; j += 32) __builtin_prefetch(row + j);
  if (N % 32 != 0) __builtin_prefetch(row + N - 1);  // half of them lie across the end of a line
}
#endif

// row_of(p) is where the values of point p begin.
template <int N, class RowOf>
void splat_each(const std::uint32_t* start, const SplatEntry* entries, RowOf row_of, float* vertices,
                std::size_t begin, std::size_t end) {
  [[maybe_unused]] const std::uint32_t end_of_range = start[end];
  for (std::size_t m = begin; m < end; ++m) {
    Row<N> sum = Row<N>::zero();
    std::uint32_t i = start[m];
    const std::uint32_t last = start[m + 1];
    for (;;) {
      const std::uint32_t stop = last - i > piece ? i + piece : last;
      Row<N> part = Row<N>::zero();
      for (; i < stop; ++i) {
#if defined(__GNUC__)
        // Points of one vertex may lie far apart; which ones come is known long before.
        constexpr std::uint32_t ahead = 64;
        if (N >= 8 && i + ahead < end_of_range) fetch_row<N>(row_of(entries[i + ahead].point));
#endif
        add_scaled(part, entries[i].weight, row_of(entries[i].point));
      }
      sum.add(part);
      if (i == last) break;
    }
    sum.store(vertices + m * N);
  }
}

template <int N>
void splat_rows(const std::uint32_t* start, const SplatEntry* entries, const ValueRows& values, float* vertices,
                std::size_t begin, std::size_t end) {
  if constexpr (N == 1) {
    if (values.stride == 1) {  // such rows never leave their array
      const auto term = [&values](const SplatEntry& entry) { return entry.weight * values.rows[entry.point]; };
      for (std::size_t m = begin; m < end; ++m) vertices[m] = sum_of(entries + start[m], entries + start[m + 1], term);
      return;
    }
  }
  if (values.stride == N && values.tail == nullptr) {  // so it is in the mean field
    const auto row_of = [rows = values.rows](std::uint32_t p) { return rows + static_cast<std::size_t>(p) * N; };
    return splat_each<N>(start, entries, row_of, vertices, begin, end);
  }
  const auto row_of = [values](std::uint32_t p) {
    return p < values.n_safe ? values.rows + p * values.stride : values.tail + (p - values.n_safe) * values.tail_stride;
  };
  splat_each<N>(start, entries, row_of, vertices, begin, end);
}

template <int N>
void splat_shares_rows(const std::uint32_t* start, const SplatEntry* entries, const Share* marginals, float* vertices,
                       std::size_t begin, std::size_t end) {
  const auto row_of = [marginals](std::uint32_t p) { return marginals + static_cast<std::size_t>(p) * N; };
  splat_each<N>(start, entries, row_of, vertices, begin, end);
}

// The sum of add(i, sum) for i in [begin, end), in pieces.
template <int N, class Add>
inline Row<N> summed(std::uint32_t begin, std::uint32_t end, Add add) {
  Row<N> sum = Row<N>::zero();
  std::uint32_t i = begin;
  for (; end - i > piece;) {
    Row<N> part = Row<N>::zero();
    for (const std::uint32_t stop = i + piece; i < stop; ++i) add(i, part);
    sum.add(part);
  }
  Row<N> part = Row<N>::zero();
  for (; i < end; ++i) add(i, part);
  sum.add(part);
  return sum;
}

template <int N>
void splat_tile_rows(const TileEntries& tile, const float* values, float* sums) {
  std::uint32_t i = 0;
  for (std::size_t s = 0; s < tile.n_sums; ++s) {
    const std::uint32_t last = i + tile.lengths[s];
    const auto add = [&](std::uint32_t at, Row<N>& sum) {
      sum.add_scaled(tile.weights[at], values + static_cast<std::size_t>(tile.points[at]) * N);
    };
    summed<N>(i, last, add).store(sums + s * N);
    i = last;
  }
}

template <int N>
void add_up_rows(const std::uint32_t* start, const std::uint32_t* sums_of, const float* sums, float* vertices,
                 std::size_t begin, std::size_t end) {
  [[maybe_unused]] const std::uint32_t end_of_range = start[end];
  const auto row_of = [=](std::uint32_t i) { return sums + static_cast<std::size_t>(sums_of[i]) * N; };
  for (std::size_t m = begin; m < end; ++m) {
    const auto add = [=](std::uint32_t i, Row<N>& sum) {
#if defined(__GNUC__)
      constexpr std::uint32_t ahead = 32;
      if (i + ahead < end_of_range) fetch_row<N>(row_of(i + ahead));
#endif
      sum.add(Row<N>::load(row_of(i)));
    };
    summed<N>(start[m], start[m + 1], add).store(vertices + m * N);
  }
}

template <int N>
void blur_rows(const std::uint32_t* chain, float* vertices, std::size_t begin, std::size_t end) {
  // In place, without a branch at the ends of chains (they are short, a branch would guess wrong):
  // every vertex is read once, and what lies beyond an end is masked to zero.
  if (begin == end) return;
  const auto row_of = [vertices](std::uint32_t entry) {
    return vertices + static_cast<std::size_t>(entry & ~chain_head) * N;
  };
  float* row = row_of(chain[begin]);
  Row<N> previous = Row<N>::zero();
  Row<N> centre = Row<N>::load(row);
  for (std::size_t i = begin + 1; i < end; ++i) {
#if defined(__GNUC__)
    constexpr std::size_t ahead = 24;  // the first axis of a block reads from beyond the second-level cache
    if (N >= 8 && i + ahead < end) {
      for (int j = 0; j < N; j += 16) __builtin_prefetch(row_of(chain[i + ahead]) + j);
    }
#endif
    float* next_row = row_of(chain[i]);
    const bool linked = (chain[i] & chain_head) == 0;
    const Row<N> next = Row<N>::load(next_row);
    Row<N>::blurred(previous, centre, next.kept_if(linked)).store(row);
    previous = centre.kept_if(linked);
    centre = next;
    row = next_row;
  }
  Row<N>::blurred(previous, centre, Row<N>::zero()).store(row);
}

// C corners, or n_corners when C is 0.
template <int N, int C>
void slice_of_corners(const std::uint32_t* vertex_of, const float* weight_of, int n_corners, float scale,
                      const float* vertices, float* out, std::size_t out_stride, int n_values, std::size_t begin,
                      std::size_t end) {
  const int corners = C > 0 ? C : n_corners;
  for (std::size_t p = begin; p < end; ++p) {
    const std::uint32_t* vertex = vertex_of + p * static_cast<std::size_t>(corners);
    const float* weight = weight_of + p * static_cast<std::size_t>(corners);
    Row<N> sum = Row<N>::zero();
    for (int k = 0; k < corners; ++k) {
      sum.add_scaled(scale * weight[k], vertices + static_cast<std::size_t>(vertex[k]) * N);
    }
    if (n_values == N) {
      sum.store(out + p * out_stride);
    } else {
      sum.store_part(out + p * out_stride, n_values);
    }
  }
}

template <int N>
void slice_rows(const std::uint32_t* vertex_of, const float* weight_of, int n_corners, float scale,
                const float* vertices, float* out, std::size_t out_stride, int n_values, std::size_t begin,
                std::size_t end) {
  const auto slice_with = [&](auto slice) {
    slice(vertex_of, weight_of, n_corners, scale, vertices, out, out_stride, n_values, begin, end);
  };
  if constexpr (N == 1) {  // where loops over corners weigh most: those of images
    if (n_corners == 3) return slice_with(slice_of_corners<1, 3>);
    if (n_corners == 6) return slice_with(slice_of_corners<1, 6>);
  }
  slice_with(slice_of_corners<N, 0>);
}

template <int N>
void map_labels_rows(const LabelMap& map, const float* from, float* to, std::size_t begin, std::size_t end) {
  if (map.kind == LabelMap::Kind::diagonal) {
    const Row<N> weights = Row<N>::load(map.weights);
    for (std::size_t m = begin; m < end; ++m) {
      Row<N> row = Row<N>::load(from + m * N);
      row.multiply(weights);
      row.store(to + m * N);
    }
    return;
  }
  // Several rows at a time: the matrix is read once for all of them, and their sums do not wait for
  // one another.
  constexpr int block = N <= 16 ? 4 : N <= 32 ? 3 : 2;
  std::size_t m = begin;
  for (; m + block <= end; m += block) {
    Row<N> sums[block];
    for (int b = 0; b < block; ++b) sums[b] = Row<N>::zero();
    for (int l = 0; l < map.n_labels; ++l) {
      const Row<N> column = Row<N>::load(map.weights + l * N);
      for (int b = 0; b < block; ++b) {
        sums[b].add_scaled(from[(m + static_cast<std::size_t>(b)) * N + static_cast<std::size_t>(l)], column);
      }
    }
    for (int b = 0; b < block; ++b) sums[b].store(to + (m + static_cast<std::size_t>(b)) * N);
  }
  for (; m < end; ++m) {
    Row<N> sum = Row<N>::zero();
    for (int l = 0; l < map.n_labels; ++l) {
      sum.add_scaled(from[m * N + static_cast<std::size_t>(l)], map.weights + l * N);
    }
    sum.store(to + m * N);
  }
}

// What update_rows does with the sums of a point that it is given one after the other.
template <int N>
struct KeepSums {
  float* out;

  void operator()(std::size_t place, const Row<N>& sum) { sum.store(out + place * N); }
  void finish(std::size_t count) { out += count * N; }
};

// Sums of a block first, then their softmax: the sums of one point do not wait for the exponentials of the
// one before.
template <int N, class Marginal>
struct Softmax {
  static constexpr std::size_t block = 8;
  Marginal* out;
  bool bounded;
  alignas(64) float logits[block * N] = {};

  void operator()(std::size_t place, const Row<N>& sum) { sum.store(logits + place * N); }
  void finish(std::size_t count) {
    constexpr std::size_t width = WidestPack::width;
    if constexpr (block * N % width == 0) {
      if (bounded) {
        for (std::size_t i = 0; i < block * N; i += width) exp_of(WidestPack::load(logits + i)).store(logits + i);
      }
    }
    for (std::size_t place = 0; place < count; ++place) {
      Row<N> row = Row<N>::load(logits + place * N);
      if (block * N % width != 0 || !bounded) row.exponentiate(bounded ? 0.0F : row.highest());
      row.multiply(whole<Marginal> / row.total());
      store_marginals(row, out + place * N);
    }
    out += count * N;
  }
};

template <int N, int C1, int C2, class Finisher>
void update_corners(const float* unary, const Message& first, const Message& second, Finisher& finisher,
                    std::size_t begin, std::size_t end) {
  // The rows of points to come are fetched meanwhile.
  constexpr std::size_t block = 8;
  constexpr std::size_t ahead = 8;
  for (std::size_t p = begin; p < end; p += block) {
    const std::size_t count = end - p < block ? end - p : block;
    for (std::size_t place = 0; place < count; ++place) {
      const std::size_t q = p + place;
      if (N >= 8 && q + ahead < end) {
        prefetch_message<N>(first, q + ahead);
        prefetch_message<N>(second, q + ahead);
      }
      Row<N> state = Row<N>::load(unary + q * N);
      add_message<N, C1>(first, q, state);
      add_message<N, C2>(second, q, state);
      finisher(place, state);
    }
    finisher.finish(count);
  }
}

template <int N, class Finisher>
void update_with(const float* unary, const Message& first, const Message& second, Finisher finisher,
                 std::size_t begin, std::size_t end) {
  // Colour and grey images, and grey volumes, with the number of corners known to the compiler.
  const int a = first.n_corners;
  const int b = second.n_corners;
  if (a == 3 && b == 6) return update_corners<N, 3, 6>(unary, first, second, finisher, begin, end);
  if (a == 3 && b == 4) return update_corners<N, 3, 4>(unary, first, second, finisher, begin, end);
  if (a == 4 && b == 5) return update_corners<N, 4, 5>(unary, first, second, finisher, begin, end);
  update_corners<N, 0, 0>(unary, first, second, finisher, begin, end);
}

template <int N>
void update_rows(const float* unary, const Message& first, const Message& second, Finish finish, float* out,
                 std::size_t begin, std::size_t end) {
  if (finish == Finish::nothing) return update_with<N>(unary, first, second, KeepSums<N>{out}, begin, end);
  const bool bounded = finish == Finish::softmax_of_bounded;
  update_with<N>(unary, first, second, Softmax<N, float>{out, bounded}, begin, end);
}

template <int N>
void update_shares_rows(const float* unary, const Message& first, const Message& second, bool bounded,
                        Share* marginals, std::size_t begin, std::size_t end) {
  update_with<N>(unary, first, second, Softmax<N, Share>{marginals, bounded}, begin, end);
}

void splat(int width, const std::uint32_t* start, const SplatEntry* entries, const ValueRows& values,
           float* vertices, std::size_t begin, std::size_t end) {
  CRFASRNN_BY_WIDTH(splat_rows, start, entries, values, vertices, begin, end)
}

void splat_shares(int width, const std::uint32_t* start, const SplatEntry* entries, const Share* marginals,
                  float* vertices, std::size_t begin, std::size_t end) {
  CRFASRNN_BY_WIDTH(splat_shares_rows, start, entries, marginals, vertices, begin, end)
}

void splat_tile(int width, const TileEntries& tile, const float* values, float* sums) {
  CRFASRNN_BY_WIDTH(splat_tile_rows, tile, values, sums)
}

void add_up(int width, const std::uint32_t* start, const std::uint32_t* sums_of, const float* sums, float* vertices,
            std::size_t begin, std::size_t end) {
  CRFASRNN_BY_WIDTH(add_up_rows, start, sums_of, sums, vertices, begin, end)
}

void blur(int width, const std::uint32_t* chain, float* vertices, std::size_t begin, std::size_t end) {
  CRFASRNN_BY_WIDTH(blur_rows, chain, vertices, begin, end)
}

void slice(int width, const std::uint32_t* vertex_of, const float* weight_of, int n_corners, float scale,
           const float* vertices, float* out, std::size_t out_stride, int n_values, std::size_t begin,
           std::size_t end) {
  CRFASRNN_BY_WIDTH(slice_rows, vertex_of, weight_of, n_corners, scale, vertices, out, out_stride, n_values, begin,
                    end)
}

void map_labels(int width, const LabelMap& map, const float* from, float* to, std::size_t begin, std::size_t end) {
  CRFASRNN_BY_WIDTH(map_labels_rows, map, from, to, begin, end)
}

bool pack(int width, const Planes& planes, const Square& square, const float* unary, float scale, float* rows,
          float* shift, float* marginals) {
  CRFASRNN_BY_WIDTH(pack_rows, planes, square, unary, scale, rows, shift, marginals)
}

bool pack_shares(int width, const Planes& planes, const Square& square, const float* unary, float scale, float* rows,
                 float* shift, Share* marginals) {
  CRFASRNN_BY_WIDTH(pack_rows, planes, square, unary, scale, rows, shift, marginals)
}

void update(int width, const float* unary, const Message& first, const Message& second, Finish finish, float* out,
            std::size_t begin, std::size_t end) {
  CRFASRNN_BY_WIDTH(update_rows, unary, first, second, finish, out, begin, end)
}

void update_shares(int width, const float* unary, const Message& first, const Message& second, bool bounded,
                   Share* marginals, std::size_t begin, std::size_t end) {
  CRFASRNN_BY_WIDTH(update_shares_rows, unary, first, second, bounded, marginals, begin, end)
}

void unpack(int width, const Planes& planes, const Square& square, const float* rows, const float* shift, float scale,
            float* out) {
  CRFASRNN_BY_WIDTH(unpack_rows, planes, square, rows, shift, scale, out)
}

template <class Pack>
inline std::size_t sigmoid_packs(float* values, std::size_t p, std::size_t end) {
  for (; p + Pack::width <= end; p += Pack::width) {
    // With e = exp(-|x|), which cannot overflow: 1 / (1 + e), or 1 minus that.
    const Pack x = Pack::load(values + p);
    const Pack size = Pack::larger(x, Pack::zero() - x);
    const Pack e = exp_of(Pack::zero() - size);
    const Pack q = Pack::quotient(Pack::all(1.0F), Pack::all(1.0F) + e);
    Pack::chosen(x, q, e * q).store(values + p);
  }
  return p;
}

void sigmoid(float* values, std::size_t begin, std::size_t end) {
  sigmoid_packs<Pack1>(values, sigmoid_packs<WidestPack>(values, begin, end), end);
}

#define CRFASRNN_NAME_(isa) #isa
#define CRFASRNN_NAME(isa) CRFASRNN_NAME_(isa)

}  // namespace

extern const TrainingKernels training_table;
extern const Kernels table;
const Kernels table{CRFASRNN_NAME(CRFASRNN_ISA), measure, simplices, splat_ones, splat, splat_shares, splat_tile, add_up,
                    splat_scalars, blur, slice, map_labels, pack, pack_shares, update, update_shares, unpack, sigmoid,
                    &training_table};

}  // namespace crfasrnn::CRFASRNN_ISA
