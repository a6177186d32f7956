// From planes of values to rows and back, sixteen pixels of a row of the image at a time, turned in registers. As
// simd.hpp, compiled once for every instruction set.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace crfasrnn::CRFASRNN_ISA {

// A cache line of each plane.
inline constexpr std::size_t turned = 16;

// Values of so many neighbouring pixels, label by label: what is done for all labels of a pixel is done for a register
// of pixels at a time.
template <int N>
struct Piece {
  alignas(64) float of[N][turned];

  explicit Piece(float filler) {
    for (int l = 0; l < N; ++l) {
      for (std::size_t i = 0; i < turned; ++i) of[l][i] = filler;
    }
  }
};

// --- Squares of values in registers -------------------------------------------------------------------

inline void turn(Pack1 (&)[1]) {}

#if defined(__AVX2__)

inline void turn(Pack4 (&p)[4]) { _MM_TRANSPOSE4_PS(p[0].v, p[1].v, p[2].v, p[3].v); }

inline void turn(Pack8 (&p)[8]) {
  __m256 pairs[8];  // of the rows j and j + 1, and of both halves
  for (int j = 0; j < 8; j += 2) {
    pairs[j] = _mm256_unpacklo_ps(p[j].v, p[j + 1].v);
    pairs[j + 1] = _mm256_unpackhi_ps(p[j].v, p[j + 1].v);
  }
  __m256 fours[8];
  for (int j = 0; j < 8; j += 4) {
    for (int k = 0; k < 2; ++k) {
      fours[j + 2 * k] = _mm256_shuffle_ps(pairs[j + k], pairs[j + k + 2], _MM_SHUFFLE(1, 0, 1, 0));
      fours[j + 2 * k + 1] = _mm256_shuffle_ps(pairs[j + k], pairs[j + k + 2], _MM_SHUFFLE(3, 2, 3, 2));
    }
  }
  for (int j = 0; j < 4; ++j) {
    p[j].v = _mm256_permute2f128_ps(fours[j], fours[j + 4], 0x20);
    p[j + 4].v = _mm256_permute2f128_ps(fours[j], fours[j + 4], 0x31);
  }
}

#else

inline void turn(Pack4 (&p)[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < i; ++j) {
      const float swapped = p[i].v[j];
      p[i].v[j] = p[j].v[i];
      p[j].v[i] = swapped;
    }
  }
}

#endif

// What is turned at a time for rows of N values: squares of sixteen gain nothing over squares of eight.
template <int N>
using Turned = typename PackFor<(N < 8 ? N : 8)>::type;

// --- Pieces of an image -------------------------------------------------------------------------------

template <int N, class Value>
inline void prefetch_row(const Value* row) {
#if defined(__GNUC__)
  constexpr int line = 64 / static_cast<int>(sizeof(Value));
  for (int j = 0; j < N; j += line) __builtin_prefetch(row + j, 1);
#else
  (void)row;
#endif
}

// Call use(count, pixel, below) for pieces of `turned` pixels, or fewer, in all rows of a square. `below` is the
// pixel under the first one: what is there comes 64 pixels later and can be fetched.
template <class Use>
inline void for_pieces(const Square& square, Use use) {
  for (std::size_t y = 0; y < square.rows; ++y) {
    const std::size_t first = square.first_pixel + y * square.stride;
    const std::size_t step = y + 1 < square.rows ? square.stride : 0;
    std::size_t x = 0;
    for (; x + turned <= square.columns; x += turned) use(turned, first + x, first + x + step);
    if (x < square.columns) use(square.columns - x, first + x, first + x + step);
  }
}

// piece = scale * `count` values of each plane, from a pixel on. What else is in the piece stays.
template <int N>
inline void read_piece(const Planes& planes, const float* values, float scale, std::size_t count, std::size_t pixel,
                       std::size_t below, Piece<N>& piece) {
  using Pack = WidestPack;
  for (int l = 0; l < planes.n_labels; ++l) {
    const float* plane = values + static_cast<std::size_t>(l) * planes.n_points;
#if defined(__GNUC__)
    __builtin_prefetch(plane + below);
#endif
    std::size_t i = 0;
    for (; i + Pack::width <= count; i += Pack::width) {
      (Pack::all(scale) * Pack::load(plane + pixel + i)).store(piece.of[l] + i);
    }
    for (; i < count; ++i) piece.of[l][i] = scale * plane[pixel + i];
  }
}

// Call store(i, l, pack) until it got all values of the first `count` pixels: of pixel i, those from label l on.
template <int N, class Store>
inline void piece_to_rows(const Piece<N>& piece, std::size_t count, Store store) {
  using Pack = Turned<N>;
  constexpr std::size_t side = Pack::width;
  for (std::size_t first = 0; first < count; first += side) {
    for (std::size_t l = 0; l < N; l += side) {
      Pack packs[side];
      for (std::size_t j = 0; j < side; ++j) packs[j] = Pack::load(piece.of[l + j] + first);
      turn(packs);
      for (std::size_t j = 0; j < side; ++j) {
        if (first + j < count) store(first + j, l, packs[j]);
      }
    }
  }
}

// piece = rows of its first `count` pixels; row_of(i) is that of pixel i.
template <int N, class RowOf>
inline void rows_to_piece(std::size_t count, RowOf row_of, Piece<N>& piece) {
  using Pack = Turned<N>;
  constexpr std::size_t side = Pack::width;
  for (std::size_t first = 0; first < count; first += side) {
    for (std::size_t l = 0; l < N; l += side) {
      Pack packs[side];
      for (std::size_t j = 0; j < side; ++j) {
        packs[j] = Pack::load(row_of(first + j < count ? first + j : count - 1) + l);
      }
      turn(packs);
      for (std::size_t j = 0; j < side; ++j) packs[j].store(piece.of[l + j] + first);
    }
  }
}

// Write the first `count` pixels of a piece into planes, from a pixel on, as change(i, pack) makes them; `pack` has
// values of the pixels from i on. One cache line after the other is filled: those of all planes may not fit the cache.
template <int N, class Change>
inline void write_piece(const Planes& planes, const Piece<N>& piece, std::size_t count, std::size_t pixel,
                        std::size_t below, float* values, Change change) {
  using Pack = WidestPack;
  for (int l = 0; l < planes.n_labels; ++l) {
    float* plane = values + static_cast<std::size_t>(l) * planes.n_points;
#if defined(__GNUC__)
    __builtin_prefetch(plane + below, 1);
#endif
    std::size_t i = 0;
    for (; i + Pack::width <= count; i += Pack::width) {
      change(i, Pack::load(piece.of[l] + i)).store(plane + pixel + i);
    }
    if (i < count) change(i, Pack::load(piece.of[l] + i)).store_part(plane + pixel + i, static_cast<int>(count - i));
  }
}

}  // namespace crfasrnn::CRFASRNN_ISA
