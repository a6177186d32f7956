// One row of values held in registers. Included only by kernels.cpp, which is compiled once for
// every instruction set; everything here lives in a namespace named after it, and nothing from the
// standard library is instantiated, so that no code for a newer processor leaks into the rest.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512BW__)
#define CRFASRNN_ISA avx512
#include <immintrin.h>
#elif defined(__AVX2__)
#define CRFASRNN_ISA avx2
#include <immintrin.h>
#else
#define CRFASRNN_ISA plain
#endif

namespace crfasrnn::CRFASRNN_ISA {

// N floats in plain C++; compilers turn the loops into whatever the target has.
template <int N>
struct PlainRow {
  static constexpr int width = N;
  float v[N];

  void clear() {
    for (int i = 0; i < N; ++i) v[i] = 0.0F;
  }
  void load(const float* p) {
    for (int i = 0; i < N; ++i) v[i] = p[i];
  }
  void store(float* p) const {
    for (int i = 0; i < N; ++i) p[i] = v[i];
  }
  void store_part(float* p, int count) const {
    for (int i = 0; i < count; ++i) p[i] = v[i];
  }
  // v += scale * p
  void add_scaled(float scale, const float* p) {
    for (int i = 0; i < N; ++i) v[i] += scale * p[i];
  }
  void add(const PlainRow& other) {
    for (int i = 0; i < N; ++i) v[i] += other.v[i];
  }
  // centre + (left + right) / 2
  static PlainRow blurred(const PlainRow& left, const PlainRow& centre, const PlainRow& right) {
    PlainRow out;
    for (int i = 0; i < N; ++i) out.v[i] = centre.v[i] + 0.5F * (left.v[i] + right.v[i]);
    return out;
  }
};

#if defined(__AVX512F__) || defined(__AVX2__)

inline __m256i mask8(int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
}

#endif

#if defined(__AVX512F__)

// N floats, a multiple of 8: whole 512-bit registers and at most one of 256 bits.
template <int N>
struct VectorRow {
  static constexpr int width = N;
  static constexpr int n_wide = N / 16;
  static constexpr bool has_half = N % 16 != 0;
  __m512 z[n_wide == 0 ? 1 : n_wide];
  __m256 y;

  void clear() {
    for (int i = 0; i < n_wide; ++i) z[i] = _mm512_setzero_ps();
    if constexpr (has_half) y = _mm256_setzero_ps();
  }
  void load(const float* p) {
    for (int i = 0; i < n_wide; ++i) z[i] = _mm512_loadu_ps(p + 16 * i);
    if constexpr (has_half) y = _mm256_loadu_ps(p + 16 * n_wide);
  }
  void store(float* p) const {
    for (int i = 0; i < n_wide; ++i) _mm512_storeu_ps(p + 16 * i, z[i]);
    if constexpr (has_half) _mm256_storeu_ps(p + 16 * n_wide, y);
  }
  void store_part(float* p, int count) const {
    for (int i = 0; i < n_wide; ++i) {
      const int rest = count - 16 * i;
      const __mmask16 mask = rest >= 16 ? 0xFFFF : rest <= 0 ? 0 : static_cast<__mmask16>((1U << rest) - 1);
      _mm512_mask_storeu_ps(p + 16 * i, mask, z[i]);
    }
    if constexpr (has_half) _mm256_maskstore_ps(p + 16 * n_wide, mask8(count - 16 * n_wide), y);
  }
  void add_scaled(float scale, const float* p) {
    for (int i = 0; i < n_wide; ++i) z[i] = _mm512_fmadd_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(p + 16 * i), z[i]);
    if constexpr (has_half) y = _mm256_fmadd_ps(_mm256_set1_ps(scale), _mm256_loadu_ps(p + 16 * n_wide), y);
  }
  void add(const VectorRow& other) {
    for (int i = 0; i < n_wide; ++i) z[i] = _mm512_add_ps(z[i], other.z[i]);
    if constexpr (has_half) y = _mm256_add_ps(y, other.y);
  }
  static VectorRow blurred(const VectorRow& left, const VectorRow& centre, const VectorRow& right) {
    VectorRow out;
    for (int i = 0; i < n_wide; ++i) {
      out.z[i] = _mm512_fmadd_ps(_mm512_set1_ps(0.5F), _mm512_add_ps(left.z[i], right.z[i]), centre.z[i]);
    }
    if constexpr (has_half) {
      out.y = _mm256_fmadd_ps(_mm256_set1_ps(0.5F), _mm256_add_ps(left.y, right.y), centre.y);
    }
    return out;
  }
};

#elif defined(__AVX2__)

template <int N>
struct VectorRow {
  static constexpr int width = N;
  static constexpr int n = N / 8;
  __m256 y[n];

  void clear() {
    for (int i = 0; i < n; ++i) y[i] = _mm256_setzero_ps();
  }
  void load(const float* p) {
    for (int i = 0; i < n; ++i) y[i] = _mm256_loadu_ps(p + 8 * i);
  }
  void store(float* p) const {
    for (int i = 0; i < n; ++i) _mm256_storeu_ps(p + 8 * i, y[i]);
  }
  void store_part(float* p, int count) const {
    for (int i = 0; i < n; ++i) _mm256_maskstore_ps(p + 8 * i, mask8(count - 8 * i), y[i]);
  }
  void add_scaled(float scale, const float* p) {
    const __m256 s = _mm256_set1_ps(scale);
    for (int i = 0; i < n; ++i) y[i] = _mm256_fmadd_ps(s, _mm256_loadu_ps(p + 8 * i), y[i]);
  }
  void add(const VectorRow& other) {
    for (int i = 0; i < n; ++i) y[i] = _mm256_add_ps(y[i], other.y[i]);
  }
  static VectorRow blurred(const VectorRow& left, const VectorRow& centre, const VectorRow& right) {
    VectorRow out;
    for (int i = 0; i < n; ++i) {
      out.y[i] = _mm256_fmadd_ps(_mm256_set1_ps(0.5F), _mm256_add_ps(left.y[i], right.y[i]), centre.y[i]);
    }
    return out;
  }
};

#endif

#if defined(__AVX512F__) || defined(__AVX2__)
template <int N>
struct RowOf {
  using type = VectorRow<N>;
};
template <>
struct RowOf<1> {
  using type = PlainRow<1>;
};
template <>
struct RowOf<4> {
  using type = PlainRow<4>;
};
#else
template <int N>
struct RowOf {
  using type = PlainRow<N>;
};
#endif

template <int N>
using Row = typename RowOf<N>::type;

}  // namespace crfasrnn::CRFASRNN_ISA
