// What the files with inner loops share. As simd.hpp, compiled once for every instruction set.
#pragma once

#include "kernels.hpp"
#include "shares.hpp"
#include "simd.hpp"

namespace crfasrnn::CRFASRNN_ISA {

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
