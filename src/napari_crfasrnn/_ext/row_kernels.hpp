// What the files with inner loops share. As simd.hpp, compiled once for every instruction set.
#pragma once

#include "kernels.hpp"
#include "shares.hpp"
#include "simd.hpp"

namespace crfasrnn::CRFASRNN_ISA {

// So many pixels of a row of the image are turned between planes and rows of values at a time.
inline constexpr std::size_t turned = 16;

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

template <int N, class Value>
inline void prefetch_row(const Value* row) {
#if defined(__GNUC__)
  constexpr int line = 64 / static_cast<int>(sizeof(Value));
  for (int j = 0; j < N; j += line) __builtin_prefetch(row + j, 1);
#else
  (void)row;
#endif
}

// Call use(point, row) with scale * the values of the planes at each pixel of a square, padded with `filler`, and
// fetch(point) some time before.
template <int N, class Fetch, class Use>
inline void read_square(const Planes& planes, const Square& square, const float* values, float scale, float filler,
                        Fetch fetch, Use use) {
  alignas(64) float block[turned][N];
  for (std::size_t i = 0; i < turned; ++i) {
    for (int l = planes.n_labels; l < N; ++l) block[i][l] = filler;
  }
  for_pieces(square, [&](std::size_t count, std::size_t pixel, std::size_t below) {
    for (std::size_t i = 0; i < count; ++i) fetch(planes.point_at(below + i));
    for (int l = 0; l < planes.n_labels; ++l) {
      const float* plane = values + static_cast<std::size_t>(l) * planes.n_points;
#if defined(__GNUC__)
      __builtin_prefetch(plane + below);
#endif
      for (std::size_t i = 0; i < count; ++i) block[i][l] = scale * plane[pixel + i];
    }
    for (std::size_t i = 0; i < count; ++i) use(planes.point_at(pixel + i), Row<N>::load(block[i]));
  });
}

// Write the rows of a square's points, of which `rows` has no others, into planes, each after change(point, row).
template <int N, class Change>
inline void write_square(const Planes& planes, const Square& square, const float* rows, float* values, Change change) {
  alignas(64) float block[turned][N];
  for_pieces(square, [&](std::size_t count, std::size_t pixel, std::size_t below) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t p = planes.point_at(pixel + i);
      Row<N> row = Row<N>::load(rows + (p - square.first_point) * N);
      change(p, row);
      row.store(block[i]);
    }
    for (int l = 0; l < planes.n_labels; ++l) {
      float* plane = values + static_cast<std::size_t>(l) * planes.n_points;
#if defined(__GNUC__)
      __builtin_prefetch(plane + below, 1);
#endif
      for (std::size_t i = 0; i < count; ++i) plane[pixel + i] = block[i][l];
    }
  });
}

// Add a message at point p to a row, in one sum. C corners, or message.n_corners when C is 0.
template <int N, int C>
inline void add_message(const Message& message, std::size_t p, Row<N>& state) {
  const int n_corners = C > 0 ? C : message.n_corners;
  const std::uint32_t* vertex = message.vertex_of + p * static_cast<std::size_t>(n_corners);
  const float* weight = message.weight_of + p * static_cast<std::size_t>(n_corners);
  Row<N> sum = Row<N>::zero();
  for (int k = 0; k < n_corners; ++k) {
    sum.add_scaled(weight[k], message.vertices + static_cast<std::size_t>(vertex[k]) * N);
  }
  state.add_scaled(message.factor == nullptr ? message.scale : message.scale * message.factor[p], sum);
}

template <int N>
inline void prefetch_message(const Message& message, std::size_t p) {
#if defined(__GNUC__)
  const std::uint32_t* vertex = message.vertex_of + p * static_cast<std::size_t>(message.n_corners);
  for (int k = 0; k < message.n_corners; ++k) {
    const float* row = message.vertices + static_cast<std::size_t>(vertex[k]) * N;
    for (int i = 0; i < N; i += 16) __builtin_prefetch(row + i);
  }
#else
  (void)message, (void)p;
#endif
}

// Call F<N> for the width of a row.
#define CRFASRNN_BY_WIDTH(function, ...)       \
  switch (width) {                             \
    case 1: return function<1>(__VA_ARGS__);   \
    case 4: return function<4>(__VA_ARGS__);   \
    case 8: return function<8>(__VA_ARGS__);   \
    case 16: return function<16>(__VA_ARGS__); \
    case 24: return function<24>(__VA_ARGS__); \
    case 32: return function<32>(__VA_ARGS__); \
    case 40: return function<40>(__VA_ARGS__); \
    case 48: return function<48>(__VA_ARGS__); \
    case 56: return function<56>(__VA_ARGS__); \
    default: return function<64>(__VA_ARGS__); \
  }

}  // namespace crfasrnn::CRFASRNN_ISA
