// Marginals in 16 bits: shares of 65535, so that a point's labels take half as many cache lines. Rounding errs
// by 8e-6 at most, and a vertex averages over its points. As simd.hpp, compiled once for every instruction set.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace crfasrnn::CRFASRNN_ISA {

// Load a pack of shares as floats from 0 to 65535; store such floats, rounded to the nearest (half to even).
inline void load_shares(const Share* p, Pack1& pack) { pack.v = static_cast<float>(*p); }
inline void store_shares(Pack1 pack, Share* p) {
  // Adding 2^23 leaves the nearest integer in the low bits. No cast, which NaN would make undefined.
  const float shifted = pack.v + 8388608.0F;
  std::uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  *p = static_cast<Share>(bits);
}

#if defined(__AVX2__)

inline void load_shares(const Share* p, Pack4& pack) {
  pack.v = _mm_cvtepi32_ps(_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void store_shares(Pack4 pack, Share* p) {
  const __m128i wide = _mm_cvtps_epi32(pack.v);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(wide, wide));
}
inline void load_shares(const Share* p, Pack8& pack) {
  pack.v = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store_shares(Pack8 pack, Share* p) {
  const __m256i wide = _mm256_cvtps_epi32(pack.v);
  const __m128i low = _mm256_castsi256_si128(wide);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, _mm256_extracti128_si256(wide, 1)));
}

#elif defined(__GNUC__)

using FourShares = Share __attribute__((vector_size(8)));

inline void load_shares(const Share* p, Pack4& pack) {
  FourShares shares;
  std::memcpy(&shares, p, sizeof(shares));
  pack.v = __builtin_convertvector(__builtin_convertvector(shares, Pack4::Bits), Pack4::Floats);
}
inline void store_shares(Pack4 pack, Share* p) {
  const FourShares shares = __builtin_convertvector((Pack4::Bits)(pack.v + Pack4::all(8388608.0F).v), FourShares);
  std::memcpy(p, &shares, sizeof(shares));
}

#else

inline void load_shares(const Share* p, Pack4& pack) {
  for (int i = 0; i < 4; ++i) pack.v[i] = static_cast<float>(p[i]);
}
inline void store_shares(const Pack4& pack, Share* p) {
  for (int i = 0; i < 4; ++i) store_shares(Pack1{pack.v[i]}, p + i);
}

#endif

#if defined(__AVX512F__)

inline void load_shares(const Share* p, Pack16& pack) {
  pack.v = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
inline void store_shares(Pack16 pack, Share* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtusepi32_epi16(_mm512_cvtps_epi32(pack.v)));
}

#endif

// What the kernels do with rows of either kind of marginals. Floats are as they are; shares become floats up to
// `whole`, which the scale of a message takes back.
template <class Marginal>
inline constexpr float whole = 1.0F;
template <>
inline constexpr float whole<Share> = 65535.0F;

// sum + scale * row at p
template <class AnyRow>
inline void add_scaled(AnyRow& sum, float scale, const float* p) {
  sum.add_scaled(scale, p);
}
template <class AnyRow>
inline void add_scaled(AnyRow& sum, float scale, const Share* p) {
  using Head = typename AnyRow::Head;
  Head values;
  load_shares(p, values);
  sum.head = Head::fused(Head::all(scale), values, sum.head);
  if constexpr (AnyRow::has_tail) add_scaled(sum.tail, scale, p + Head::width);
}

template <class Pack>
inline void store_values(Pack pack, float* p) {
  pack.store(p);
}
template <class Pack>
inline void store_values(Pack pack, Share* p) {
  store_shares(pack, p);
}

template <class AnyRow, class Marginal>
inline void store_marginals(const AnyRow& row, Marginal* p) {
  store_values(row.head, p);
  if constexpr (AnyRow::has_tail) store_marginals(row.tail, p + AnyRow::Head::width);
}

}  // namespace crfasrnn::CRFASRNN_ISA
