// What the items of the CUDA backend are made of. An item is what one thread does: every kernel of
// lattice_cuda.cu runs one, and so do the host loops of lattice_items.cpp, with which machines without a
// GPU test them. Float arithmetic is free of contraction (--fmad=false, -ffp-contract=off) but for
// the std::fmaf that is written out, so host and device compute the same bits.
//
// Letters: N points, d feature dimensions, M vertices, V values per point, E = N (d + 1) entries.
// A row of values is `width` floats, a multiple of the P floats that one thread moves at a time.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

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

// The vertices one step down and up an axis, or `absent`; read in one instruction.
struct alignas(8) Link {
  std::uint32_t previous;
  std::uint32_t next;
};

// A vertex whose entries fill several segments.
struct LongVertex {
  std::uint32_t vertex;
  std::uint32_t first_segment;
  std::uint32_t n_segments;
};

// Where a row begins. From 32 bits each, which one instruction multiplies: rows are fewer than 2^31.
template <class Row>
CRFASRNN_HD std::size_t row_offset(Row row, int width) {
  return static_cast<std::size_t>(static_cast<std::uint32_t>(row)) * static_cast<std::uint32_t>(width);
}

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

}  // namespace crfasrnn::gpu
