// How the mean field begins and ends: planes of logits become rows with their first softmax, rows become planes. As
// simd.hpp, compiled once for every instruction set.
#pragma once

#include "kernels.hpp"
#include "shares.hpp"
#include "simd.hpp"
#include "turning.hpp"

namespace crfasrnn::CRFASRNN_ISA {

inline constexpr float far_below = -1e30F;  // logit of the labels that only fill up a row

template <int N, class Marginal>
bool pack_rows(const Planes& planes, const Square& square, const float* unary, float scale, float* rows, float* shift,
               Marginal* marginals) {
  using Pack = WidestPack;
  const auto place_of = [&](std::size_t p) { return marginals + (p - square.first_point) * N; };
  Piece<N> logits(far_below);
  Piece<N> shares(0.0F);
  alignas(64) float highest[turned];
  Pack zeros = Pack::zero();  // unless something is not finite
  for_pieces(square, [&](std::size_t count, std::size_t pixel, std::size_t below) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t p = planes.point_at(below + i);
      prefetch_row<N>(rows + p * N);
      prefetch_row<N>(place_of(p));
    }
    read_piece(planes, unary, scale, count, pixel, below, logits);
    // Softmax of a register of pixels, label after label.
    for (std::size_t i = 0; i < count; i += Pack::width) {
      Pack most = Pack::load(logits.of[0] + i);
      for (int l = 0; l < planes.n_labels; ++l) {
        const Pack logit = Pack::load(logits.of[l] + i);
        most = Pack::larger(most, logit);
        zeros = zeros + (logit - logit);
      }
      most.store(highest + i);
      Pack total = Pack::zero();
      for (int l = 0; l < planes.n_labels; ++l) {
        const Pack logit = Pack::load(logits.of[l] + i) - most;
        logit.store(logits.of[l] + i);
        const Pack share = exp_of(logit);
        share.store(shares.of[l] + i);
        total = total + share;
      }
      const Pack factor = Pack::quotient(Pack::all(whole<Marginal>), total);
      for (int l = 0; l < planes.n_labels; ++l) (Pack::load(shares.of[l] + i) * factor).store(shares.of[l] + i);
    }
    std::size_t points[turned];
    for (std::size_t i = 0; i < count; ++i) {
      points[i] = planes.point_at(pixel + i);
      shift[points[i]] = highest[i];
    }
    piece_to_rows(logits, count, [&](std::size_t i, std::size_t l, auto pack) { pack.store(rows + points[i] * N + l); });
    piece_to_rows(shares, count,
                  [&](std::size_t i, std::size_t l, auto pack) { store_values(pack, place_of(points[i]) + l); });
  });
  return zeros.total() == 0.0F;
}

template <int N>
void unpack_rows(const Planes& planes, const Square& square, const float* rows, const float* shift, float scale,
                 float* out) {
  Piece<N> values(0.0F);
  alignas(64) float shifts[turned] = {};
  for_pieces(square, [&](std::size_t count, std::size_t pixel, std::size_t below) {
    for (std::size_t i = 0; i < count; ++i) shifts[i] = shift[planes.point_at(pixel + i)];
    const auto row_of = [&](std::size_t i) { return rows + (planes.point_at(pixel + i) - square.first_point) * N; };
    rows_to_piece<N>(count, row_of, values);
    write_piece(planes, values, count, pixel, below, out, [&](std::size_t i, WidestPack pack) {
      return (pack + WidestPack::load(shifts + i)) * WidestPack::all(scale);
    });
  });
}

}  // namespace crfasrnn::CRFASRNN_ISA
