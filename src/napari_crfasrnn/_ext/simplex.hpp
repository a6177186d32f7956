// The simplices around points, as many points at a time as a register has lanes. Included only by
// kernels.cpp, like simd.hpp.
//
// Free of fused multiply-add (-ffp-contract=off, none by hand): every machine finds the same simplices.
// Numbers of coordinates and steps are small, so floats hold them exactly.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

// Loops over dimensions that are known: the values of all of them stay in registers.
#if defined(__clang__)
#define CRFASRNN_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define CRFASRNN_UNROLL _Pragma("GCC unroll 8")
#else
#define CRFASRNN_UNROLL
#endif

namespace crfasrnn::CRFASRNN_ISA {

// Per lane: a < b ? x : y, and a == b ? x : y.
inline Pack1 if_less(Pack1 a, Pack1 b, Pack1 x, Pack1 y) { return {a.v < b.v ? x.v : y.v}; }
inline Pack1 if_equal(Pack1 a, Pack1 b, Pack1 x, Pack1 y) { return {a.v == b.v ? x.v : y.v}; }
inline void store_integers(Pack1 x, std::int32_t* p) { *p = static_cast<std::int32_t>(x.v); }

#if defined(__AVX2__)
inline Pack4 if_less(Pack4 a, Pack4 b, Pack4 x, Pack4 y) {
  return {_mm_blendv_ps(y.v, x.v, _mm_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
inline Pack8 if_less(Pack8 a, Pack8 b, Pack8 x, Pack8 y) {
  return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
inline Pack8 if_equal(Pack8 a, Pack8 b, Pack8 x, Pack8 y) {
  return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ))};
}
inline void store_integers(Pack8 x, std::int32_t* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_cvttps_epi32(x.v));
}
#else
inline Pack4 if_less(Pack4 a, Pack4 b, Pack4 x, Pack4 y) {
#if defined(__GNUC__)
  const auto first = (Pack4::Bits)(a.v < b.v);
  return {(Pack4::Floats)(((Pack4::Bits)x.v & first) | ((Pack4::Bits)y.v & ~first))};
#else
  return Pack4::each([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; });
#endif
}
inline Pack4 if_equal(Pack4 a, Pack4 b, Pack4 x, Pack4 y) {
#if defined(__GNUC__)
  const auto first = (Pack4::Bits)(a.v == b.v);
  return {(Pack4::Floats)(((Pack4::Bits)x.v & first) | ((Pack4::Bits)y.v & ~first))};
#else
  return Pack4::each([&](int i) { return a.v[i] == b.v[i] ? x.v[i] : y.v[i]; });
#endif
}
inline void store_integers(Pack4 x, std::int32_t* p) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<std::int32_t>(x.v[i]);
}
#endif

#if defined(__AVX512F__)
inline Pack16 if_less(Pack16 a, Pack16 b, Pack16 x, Pack16 y) {
  return {_mm512_mask_mov_ps(y.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), x.v)};
}
inline Pack16 if_equal(Pack16 a, Pack16 b, Pack16 x, Pack16 y) {
  return {_mm512_mask_mov_ps(y.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ), x.v)};
}
inline void store_integers(Pack16 x, std::int32_t* p) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(x.v)); }
#endif

// Adding and taking away 1.5 * 2^23 rounds a float below 2^22 to the nearest integer, ties to even.
template <class P>
inline P round_to_even(P x) {
  const P magic = P::all(12582912.0F);
  return (x + magic) - magic;
}

// Map features to the hyperplane whose d + 1 coordinates sum to 0 (p. 5 in Adams et al. 2010).
template <int D, class P>
inline void elevate(const FeatureBlock& features, std::size_t first, int dims, const float* scale, P* elevated) {
  const int d = D > 0 ? D : dims;
  P sum = P::zero();
  CRFASRNN_UNROLL for (int j = d; j > 0; --j) {
    const P c = P::load(features.of[j - 1] + first) * P::all(scale[j - 1]);
    elevated[j] = sum - P::all(static_cast<float>(j)) * c;
    sum = sum + c;
  }
  elevated[0] = sum;
}

template <int D>
void measure_dims(const FeatureBlock& features, int dims, const float* scale, float limit, Bounds& bounds) {
  using P = WidestPack;
  const int d = D > 0 ? D : dims;
  P elevated[(D > 0 ? D : max_dims) + 1];
  P low[(D > 0 ? D : max_dims) + 1];
  P high[(D > 0 ? D : max_dims) + 1];
  CRFASRNN_UNROLL for (int j = 0; j <= d; ++j) {
    low[j] = P::all(bounds.low[j]);
    high[j] = P::all(bounds.high[j]);
  }
  P inside = P::all(1.0F);
  for (std::size_t p = 0; p < block_points; p += static_cast<std::size_t>(P::width)) {
    elevate<D>(features, p, d, scale, elevated);
    CRFASRNN_UNROLL for (int j = 0; j <= d; ++j) {
      const P x = elevated[j];
      low[j] = if_less(x, low[j], x, low[j]);
      high[j] = if_less(high[j], x, x, high[j]);
      // Written so that NaN counts as outside.
      const P size = P::larger(x, P::zero() - x);
      inside = if_less(size, P::all(limit), inside, if_equal(size, P::all(limit), inside, P::zero()));
    }
  }
  float lanes[P::width];
  inside.store(lanes);
  for (const float lane : lanes) bounds.usable = bounds.usable && lane != 0.0F;
  CRFASRNN_UNROLL for (int j = 0; j <= d; ++j) {
    low[j].store(lanes);
    for (const float lane : lanes) bounds.low[j] = lane < bounds.low[j] ? lane : bounds.low[j];
    high[j].store(lanes);
    for (const float lane : lanes) bounds.high[j] = lane > bounds.high[j] ? lane : bounds.high[j];
  }
}

template <int D, class P>
inline void simplex_lanes_at(const FeatureBlock& features, std::size_t first, int dims, const float* scale, int lane,
                             SimplexBlock& block) {
  constexpr int most = (D > 0 ? D : max_dims) + 1;
  const int d = D > 0 ? D : dims;
  const P one = P::all(1.0F);
  const P zero = P::zero();
  const P down = P::all(1.0F / static_cast<float>(d + 1));
  const P up = P::all(static_cast<float>(d + 1));
  P elevated[most];
  P origin[most];
  P residual[most];
  P rank[most];
  elevate<D>(features, first + static_cast<std::size_t>(lane), d, scale, elevated);

  // The nearest point whose coordinates are multiples of d + 1.
  P excess = zero;
  CRFASRNN_UNROLL for (int j = 0; j <= d; ++j) {
    const P rounded = round_to_even(elevated[j] * down);
    origin[j] = rounded * up;
    excess = excess + rounded;
    residual[j] = elevated[j] - origin[j];
    rank[j] = zero;
  }
  // rank = how many residuals are larger; of equal ones the earlier coordinate goes first.
  CRFASRNN_UNROLL for (int i = 0; i < d; ++i) {
    CRFASRNN_UNROLL for (int j = i + 1; j <= d; ++j) {
      const P less = if_less(residual[i], residual[j], one, zero);
      rank[i] = rank[i] + less;
      rank[j] = rank[j] + (one - less);
    }
  }
  // When the rounded coordinates do not sum to 0, walk back to the hyperplane along the coordinates
  // that rounding moved most (p. 4 in Adams et al. 2010).
  CRFASRNN_UNROLL for (int j = 0; j <= d; ++j) {
    const P moved = rank[j] + excess;
    const P wrap = if_less(moved, zero, one, if_less(P::all(static_cast<float>(d)), moved, zero - one, zero));
    rank[j] = moved + wrap * up;
    origin[j] = origin[j] + wrap * up;
    store_integers(origin[j], block.origin[j] + lane);
    residual[j] = (elevated[j] - origin[j]) * down;
  }
  // Barycentric coordinates are differences of the residuals in the order of rank (p. 10).
  P sorted[most];
  CRFASRNN_UNROLL for (int r = 0; r <= d; ++r) {
    const P wanted = P::all(static_cast<float>(r));
    P value = residual[0];
    P order = zero;
    CRFASRNN_UNROLL for (int j = 1; j <= d; ++j) {
      value = if_equal(rank[j], wanted, residual[j], value);
      order = if_equal(rank[j], wanted, P::all(static_cast<float>(j)), order);
    }
    sorted[r] = value;
    store_integers(order, block.order[r] + lane);
  }
  (sorted[d] + (one - sorted[0])).store(block.barycentric[0] + lane);
  CRFASRNN_UNROLL for (int k = 1; k <= d; ++k) {
    (sorted[d - k] - sorted[d + 1 - k]).store(block.barycentric[k] + lane);
  }
}

template <int D>
void simplices_dims(const FeatureBlock& features, std::size_t first, int dims, const float* scale,
                    SimplexBlock& block) {
  for (int lane = 0; lane < simplex_lanes; lane += WidestPack::width) {
    simplex_lanes_at<D, WidestPack>(features, first, dims, scale, lane, block);
  }
}

}  // namespace crfasrnn::CRFASRNN_ISA
