// One row of values held in registers. Included only by kernels.cpp, which is compiled once for
// every instruction set; everything here lives in a namespace named after it, and nothing from the
// standard library is instantiated, so that no code for a newer processor leaks into the rest.
//
// A row is an array of packs, the widest first: a pack is what one register holds. The packs of an
// instruction set are the only code that names it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

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

// exp(x) = 2^n exp(r) with |r| <= ln(2) / 2, and exp(r) = 1 + r + r^2 (c0 + c1 r + ... + c4 r^4), fitted
// by least squares reweighted towards the largest relative error, 4e-9 before rounding.
namespace exponential {
constexpr float log2_e = 1.44269504F;
constexpr float ln2_high = 0.693359375F;  // exact in 10 bits, so that n * ln2_high is exact
constexpr float ln2_low = -2.12194440e-4F;
constexpr float c0 = 0.49999994F;
constexpr float c1 = 0.16666521F;
constexpr float c2 = 0.04166839F;
constexpr float c3 = 0.00836871F;
constexpr float c4 = 0.00138146F;
constexpr float to_integer = 12582912.0F;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
// Below, the result is 0: no marginal that small can matter, and products of smaller ones would
// be denormal numbers, which are a hundred times slower.
constexpr float lowest = -60.0F;
}  // namespace exponential

// --- One float, for values that come alone ----------------------------------------------------------

struct Pack1 {
  static constexpr int width = 1;
  float v;

  static Pack1 zero() { return {0.0F}; }
  static Pack1 all(float x) { return {x}; }
  static Pack1 load(const float* p) { return {*p}; }
  void store(float* p) const { *p = v; }
  void store_part(float* p, int count) const {
    if (count > 0) *p = v;
  }
  friend Pack1 operator+(Pack1 a, Pack1 b) { return {a.v + b.v}; }
  friend Pack1 operator-(Pack1 a, Pack1 b) { return {a.v - b.v}; }
  friend Pack1 operator*(Pack1 a, Pack1 b) { return {a.v * b.v}; }
  static Pack1 fused(Pack1 a, Pack1 b, Pack1 c) { return {a.v * b.v + c.v}; }
  static Pack1 larger(Pack1 a, Pack1 b) { return {a.v > b.v ? a.v : b.v}; }
  float highest() const { return v; }
  float total() const { return v; }
  static Pack1 power_of_two(Pack1 shifted) {
    std::uint32_t bits;
    std::memcpy(&bits, &shifted.v, 4);
    bits = (bits + 127U) << 23;
    Pack1 out;
    std::memcpy(&out.v, &bits, 4);
    return out;
  }
  static Pack1 quotient(Pack1 a, Pack1 b) { return {a.v / b.v}; }
  // Per lane: x < 0 ? negative : positive
  static Pack1 chosen(Pack1 x, Pack1 positive, Pack1 negative) { return {x.v < 0.0F ? negative.v : positive.v}; }
  // No choice that the compiler could make a branch of: it could not be predicted.
  Pack1 kept_if(bool keep) const {
    std::uint32_t bits;
    std::memcpy(&bits, &v, 4);
    bits &= 0U - std::uint32_t{keep};
    Pack1 out;
    std::memcpy(&out.v, &bits, 4);
    return out;
  }
  static Pack1 zero_below(Pack1 x, float limit, Pack1 value) { return {x.v < limit ? 0.0F : value.v}; }
};

// --- Four floats ------------------------------------------------------------------------------------

#if defined(__AVX2__)

struct Pack4 {
  static constexpr int width = 4;
  __m128 v;

  static Pack4 zero() { return {_mm_setzero_ps()}; }
  static Pack4 all(float x) { return {_mm_set1_ps(x)}; }
  static Pack4 load(const float* p) { return {_mm_loadu_ps(p)}; }
  void store(float* p) const { _mm_storeu_ps(p, v); }
  void store_part(float* p, int count) const {
    _mm_maskstore_ps(p, _mm_cmpgt_epi32(_mm_set1_epi32(count), _mm_setr_epi32(0, 1, 2, 3)), v);
  }
  friend Pack4 operator+(Pack4 a, Pack4 b) { return {_mm_add_ps(a.v, b.v)}; }
  friend Pack4 operator-(Pack4 a, Pack4 b) { return {_mm_sub_ps(a.v, b.v)}; }
  friend Pack4 operator*(Pack4 a, Pack4 b) { return {_mm_mul_ps(a.v, b.v)}; }
  static Pack4 fused(Pack4 a, Pack4 b, Pack4 c) { return {_mm_fmadd_ps(a.v, b.v, c.v)}; }
  static Pack4 larger(Pack4 a, Pack4 b) { return {_mm_max_ps(a.v, b.v)}; }
  float highest() const {
    const __m128 pair = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
  }
  float total() const {
    const __m128 pair = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
  static Pack4 power_of_two(Pack4 shifted) {
    const __m128i bits = _mm_add_epi32(_mm_castps_si128(shifted.v), _mm_set1_epi32(127));
    return {_mm_castsi128_ps(_mm_slli_epi32(bits, 23))};
  }
  static Pack4 quotient(Pack4 a, Pack4 b) { return {_mm_div_ps(a.v, b.v)}; }
  static Pack4 chosen(Pack4 x, Pack4 positive, Pack4 negative) {
    return {_mm_blendv_ps(positive.v, negative.v, x.v)};
  }
  Pack4 kept_if(bool keep) const { return {_mm_and_ps(v, _mm_castsi128_ps(_mm_set1_epi32(-int{keep})))}; }
  static Pack4 zero_below(Pack4 x, float limit, Pack4 value) {
    return {_mm_andnot_ps(_mm_cmplt_ps(x.v, _mm_set1_ps(limit)), value.v)};
  }
};

#elif defined(__GNUC__)

// Vector types of GCC and Clang: SSE, NEON, or whatever the target has.
struct Pack4 {
  static constexpr int width = 4;
  using Floats = float __attribute__((vector_size(16)));
  using Bits = std::uint32_t __attribute__((vector_size(16)));
  Floats v;

  static Pack4 zero() { return {Floats{}}; }
  static Pack4 all(float x) { return {Floats{x, x, x, x}}; }
  static Pack4 load(const float* p) {
    Pack4 out;
    std::memcpy(&out.v, p, sizeof(Floats));
    return out;
  }
  void store(float* p) const { std::memcpy(p, &v, sizeof(Floats)); }
  void store_part(float* p, int count) const {
    for (int i = 0; i < 4 && i < count; ++i) p[i] = v[i];
  }
  friend Pack4 operator+(Pack4 a, Pack4 b) { return {a.v + b.v}; }
  friend Pack4 operator-(Pack4 a, Pack4 b) { return {a.v - b.v}; }
  friend Pack4 operator*(Pack4 a, Pack4 b) { return {a.v * b.v}; }
  static Pack4 fused(Pack4 a, Pack4 b, Pack4 c) { return {a.v * b.v + c.v}; }
  static Pack4 larger(Pack4 a, Pack4 b) {
    const Bits first = (Bits)(a.v > b.v);
    return {(Floats)(((Bits)a.v & first) | ((Bits)b.v & ~first))};
  }
  float highest() const {
    const float a = v[0] > v[1] ? v[0] : v[1];
    const float b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }
  float total() const { return (v[0] + v[2]) + (v[1] + v[3]); }
  static Pack4 power_of_two(Pack4 shifted) { return {(Floats)(((Bits)shifted.v + 127U) << 23)}; }
  static Pack4 quotient(Pack4 a, Pack4 b) { return {a.v / b.v}; }
  static Pack4 chosen(Pack4 x, Pack4 positive, Pack4 negative) {
    const Bits below = (Bits)(x.v < Floats{});
    return {(Floats)(((Bits)negative.v & below) | ((Bits)positive.v & ~below))};
  }
  Pack4 kept_if(bool keep) const {
    const std::uint32_t mask = 0U - std::uint32_t{keep};
    return {(Floats)((Bits)v & Bits{mask, mask, mask, mask})};
  }
  static Pack4 zero_below(Pack4 x, float limit, Pack4 value) {
    return {(Floats)((Bits)value.v & ~(Bits)(x.v < all(limit).v))};
  }
};

#else

struct Pack4 {
  static constexpr int width = 4;
  float v[4];

  template <class F>
  static Pack4 each(F f) {
    Pack4 out;
    for (int i = 0; i < 4; ++i) out.v[i] = f(i);
    return out;
  }
  static Pack4 zero() { return all(0.0F); }
  static Pack4 all(float x) { return {{x, x, x, x}}; }
  static Pack4 load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
  void store(float* p) const { std::memcpy(p, v, sizeof(v)); }
  void store_part(float* p, int count) const {
    for (int i = 0; i < 4 && i < count; ++i) p[i] = v[i];
  }
  friend Pack4 operator+(const Pack4& a, const Pack4& b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  friend Pack4 operator-(const Pack4& a, const Pack4& b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  friend Pack4 operator*(const Pack4& a, const Pack4& b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static Pack4 fused(const Pack4& a, const Pack4& b, const Pack4& c) { return a * b + c; }
  static Pack4 larger(const Pack4& a, const Pack4& b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  float highest() const {
    const float a = v[0] > v[1] ? v[0] : v[1];
    const float b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }
  float total() const { return (v[0] + v[2]) + (v[1] + v[3]); }
  static Pack4 power_of_two(const Pack4& shifted) {
    return each([&](int i) { return Pack1::power_of_two({shifted.v[i]}).v; });
  }
  static Pack4 quotient(const Pack4& a, const Pack4& b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static Pack4 chosen(const Pack4& x, const Pack4& positive, const Pack4& negative) {
    return each([&](int i) { return x.v[i] < 0.0F ? negative.v[i] : positive.v[i]; });
  }
  Pack4 kept_if(bool keep) const {
    return each([&](int i) { return keep ? v[i] : 0.0F; });
  }
  static Pack4 zero_below(const Pack4& x, float limit, const Pack4& value) {
    return each([&](int i) { return x.v[i] < limit ? 0.0F : value.v[i]; });
  }
};

#endif

// --- Eight and sixteen floats -------------------------------------------------------------------------

#if defined(__AVX2__)

struct Pack8 {
  static constexpr int width = 8;
  __m256 v;

  static Pack8 zero() { return {_mm256_setzero_ps()}; }
  static Pack8 all(float x) { return {_mm256_set1_ps(x)}; }
  static Pack8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store_part(float* p, int count) const {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane), v);
  }
  friend Pack8 operator+(Pack8 a, Pack8 b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Pack8 operator-(Pack8 a, Pack8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Pack8 operator*(Pack8 a, Pack8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static Pack8 fused(Pack8 a, Pack8 b, Pack8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Pack8 larger(Pack8 a, Pack8 b) { return {_mm256_max_ps(a.v, b.v)}; }
  Pack4 low() const { return {_mm256_castps256_ps128(v)}; }
  Pack4 high() const { return {_mm256_extractf128_ps(v, 1)}; }
  float highest() const { return Pack4::larger(low(), high()).highest(); }
  float total() const { return (low() + high()).total(); }
  static Pack8 power_of_two(Pack8 shifted) {
    const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(shifted.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 23))};
  }
  static Pack8 quotient(Pack8 a, Pack8 b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Pack8 chosen(Pack8 x, Pack8 positive, Pack8 negative) {
    return {_mm256_blendv_ps(positive.v, negative.v, x.v)};
  }
  Pack8 kept_if(bool keep) const { return {_mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(-int{keep})))}; }
  static Pack8 zero_below(Pack8 x, float limit, Pack8 value) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(x.v, _mm256_set1_ps(limit), _CMP_LT_OQ), value.v)};
  }
};

#endif

#if defined(__AVX512F__)

struct Pack16 {
  static constexpr int width = 16;
  __m512 v;

  static Pack16 zero() { return {_mm512_setzero_ps()}; }
  static Pack16 all(float x) { return {_mm512_set1_ps(x)}; }
  static Pack16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_part(float* p, int count) const {
    const __mmask16 mask = count >= 16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1U << count) - 1);
    _mm512_mask_storeu_ps(p, mask, v);
  }
  friend Pack16 operator+(Pack16 a, Pack16 b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Pack16 operator-(Pack16 a, Pack16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Pack16 operator*(Pack16 a, Pack16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static Pack16 fused(Pack16 a, Pack16 b, Pack16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Pack16 larger(Pack16 a, Pack16 b) { return {_mm512_max_ps(a.v, b.v)}; }
  Pack8 low() const { return {_mm512_castps512_ps256(v)}; }
  Pack8 high() const { return {_mm512_extractf32x8_ps(v, 1)}; }
  float highest() const { return Pack8::larger(low(), high()).highest(); }
  float total() const { return (low() + high()).total(); }
  static Pack16 power_of_two(Pack16 shifted) {
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(shifted.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 23))};
  }
  static Pack16 quotient(Pack16 a, Pack16 b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Pack16 chosen(Pack16 x, Pack16 positive, Pack16 negative) {
    return {_mm512_mask_mov_ps(positive.v, _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LT_OQ), negative.v)};
  }
  Pack16 kept_if(bool keep) const { return {_mm512_maskz_mov_ps(static_cast<__mmask16>(-int{keep}), v)}; }
  static Pack16 zero_below(Pack16 x, float limit, Pack16 value) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), value.v)};
  }
};

#endif

template <class P>
inline P exp_of(P x) {
  namespace e = exponential;
  const P shifted = P::fused(x, P::all(e::log2_e), P::all(e::to_integer));
  const P n = shifted - P::all(e::to_integer);
  const P r = P::fused(n, P::all(-e::ln2_low), P::fused(n, P::all(-e::ln2_high), x));
  P c = P::fused(P::all(e::c4), r, P::all(e::c3));
  c = P::fused(c, r, P::all(e::c2));
  c = P::fused(c, r, P::all(e::c1));
  c = P::fused(c, r, P::all(e::c0));
  c = P::fused(c, r * r, r + P::all(1.0F));
  return P::zero_below(x, e::lowest, c * P::power_of_two(shifted));
}

// --- Rows ---------------------------------------------------------------------------------------------

// The widest pack of at most N floats.
template <int N>
struct PackFor {
#if defined(__AVX512F__)
  static auto pick() {
    if constexpr (N >= 16) return Pack16{};
    else if constexpr (N >= 8) return Pack8{};
    else if constexpr (N >= 4) return Pack4{};
    else return Pack1{};
  }
  using Widest = Pack16;
#elif defined(__AVX2__)
  static auto pick() {
    if constexpr (N >= 8) return Pack8{};
    else if constexpr (N >= 4) return Pack4{};
    else return Pack1{};
  }
  using Widest = Pack8;
#else
  static auto pick() {
    if constexpr (N >= 4) return Pack4{};
    else return Pack1{};
  }
  using Widest = Pack4;
#endif
  using type = decltype(pick());
};
using WidestPack = PackFor<16>::Widest;

// The larger or the sum of two packs, of which the first may be twice or four times as wide.
template <class F, class Wide, class Narrow>
inline Narrow folded(F f, Wide wide, Narrow narrow) {
  if constexpr (Wide::width == Narrow::width) {
    return f(wide, narrow);
  } else {
    return folded(f, f(wide.low(), wide.high()), narrow);
  }
}

// N floats: a pack, and the row of those that are left. No array, whose elements compilers would
// rather keep in memory.
template <int N>
struct Row {
  static constexpr int width = N;
  using Head = typename PackFor<N>::type;
  using Tail = Row<N - Head::width>;
  static constexpr bool has_tail = N > Head::width;
  Head head;
  [[no_unique_address]] Tail tail;

  // Combine packs of one or more rows: f works on packs of any width.
  template <class F, class... Rows>
  static Row each(F f, const Rows&... rows) {
    if constexpr (has_tail) {
      return {f(rows.head...), Tail::each(f, rows.tail...)};
    } else {
      return {f(rows.head...), {}};
    }
  }
  static Row zero() {
    if constexpr (has_tail) {
      return {Head::zero(), Tail::zero()};
    } else {
      return {Head::zero(), {}};
    }
  }
  static Row load(const float* p) {
    if constexpr (has_tail) {
      return {Head::load(p), Tail::load(p + Head::width)};
    } else {
      return {Head::load(p), {}};
    }
  }
  void store(float* p) const {
    head.store(p);
    if constexpr (has_tail) tail.store(p + Head::width);
  }
  void store_part(float* p, int count) const {
    head.store_part(p, count);
    if constexpr (has_tail) tail.store_part(p + Head::width, count - Head::width);
  }
  // this + scale * row at p
  void add_scaled(float scale, const float* p) {
    head = Head::fused(Head::all(scale), Head::load(p), head);
    if constexpr (has_tail) tail.add_scaled(scale, p + Head::width);
  }
  void add_scaled(float scale, const Row& row) {
    head = Head::fused(Head::all(scale), row.head, head);
    if constexpr (has_tail) tail.add_scaled(scale, row.tail);
  }
  void add(const Row& row) {
    *this = each([](auto a, auto b) { return a + b; }, *this, row);
  }
  void subtract(float x) {
    *this = each([x](auto a) { return a - decltype(a)::all(x); }, *this);
  }
  void subtract(const Row& row) {
    *this = each([](auto a, auto b) { return a - b; }, *this, row);
  }
  void multiply(float factor) {
    *this = each([factor](auto a) { return a * decltype(a)::all(factor); }, *this);
  }
  void multiply(const Row& row) {
    *this = each([](auto a, auto b) { return a * b; }, *this, row);
  }
  // centre + (left + right) / 2
  static Row blurred(const Row& left, const Row& centre, const Row& right) {
    return each([](auto l, auto c, auto r) { return decltype(c)::fused(decltype(c)::all(0.5F), l + r, c); }, left,
                centre, right);
  }
  // this, or zeros (also where this is not finite)
  Row kept_if(bool keep) const {
    return each([keep](auto a) { return a.kept_if(keep); }, *this);
  }
  // All packs folded into one of the last one's width.
  template <class F>
  auto folded_by(F f) const {
    if constexpr (has_tail) {
      return folded(f, head, tail.folded_by(f));
    } else {
      return head;
    }
  }
  float highest() const {
    return folded_by([](auto a, auto b) { return decltype(a)::larger(a, b); }).highest();
  }
  float total() const {
    return folded_by([](auto a, auto b) { return a + b; }).total();
  }
  // exp(this - shift), and below 1e-26 zero
  void exponentiate(float shift) {
    *this = each([shift](auto a) { return exp_of(a - decltype(a)::all(shift)); }, *this);
  }
};

template <>
struct Row<0> {};

}  // namespace crfasrnn::CRFASRNN_ISA
