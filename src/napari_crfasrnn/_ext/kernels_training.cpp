// Compiled once per instruction set, as kernels.cpp.
#include "kernels_training.hpp"

#include "row_kernels.hpp"
#include "turning.hpp"

namespace crfasrnn::CRFASRNN_ISA {
namespace {

template <int N>
void to_rows_of(const Planes& planes, const Square& square, const float* values, float scale, float* rows) {
  Piece<N> piece(0.0F);
  for_pieces(square, [&](std::size_t count, std::size_t pixel, std::size_t below) {
    for (std::size_t i = 0; i < count; ++i) prefetch_row<N>(rows + planes.point_at(below + i) * N);
    read_piece(planes, values, scale, count, pixel, below, piece);
    piece_to_rows(piece, count, [&](std::size_t i, std::size_t l, auto pack) {
      pack.store(rows + planes.point_at(pixel + i) * N + l);
    });
  });
}

template <int N>
void to_planes_of(const Planes& planes, const Square& square, const float* rows, float scale, float* values) {
  Piece<N> piece(0.0F);
  for_pieces(square, [&](std::size_t count, std::size_t pixel, std::size_t below) {
    const auto row_of = [&](std::size_t i) { return rows + (planes.point_at(pixel + i) - square.first_point) * N; };
    rows_to_piece<N>(count, row_of, piece);
    write_piece(planes, piece, count, pixel, below, values,
                [scale](std::size_t, WidestPack pack) { return pack * WidestPack::all(scale); });
  });
}

// So many rows of products are summed in registers at a time: a divisor of N that leaves a few free.
template <int N>
constexpr int rows_at_once() {
#if defined(__AVX512F__) || defined(__aarch64__)
  constexpr int registers = 32;
#else
  constexpr int registers = 16;
#endif
  constexpr int packs = (N + WidestPack::width - 1) / WidestPack::width;
  int rows = N < 8 ? N : 8;
  while (rows > 1 && rows * packs > registers - 3) rows /= 2;
  return rows;
}

template <int N>
void add_products_of(const float* left, const float* right, float* sums, std::size_t begin, std::size_t end) {
  // Pieces short enough to stay in the cache while all rows take their turn; short sums also round less.
  constexpr std::size_t piece = 64;
  constexpr int rows = rows_at_once<N>();
  for (std::size_t m = begin; m < end; m += piece) {
    const std::size_t stop = end - m < piece ? end : m + piece;
    for (int first = 0; first < N; first += rows) {
      Row<N> products[rows];
      for (int i = 0; i < rows; ++i) products[i] = Row<N>::zero();
      for (std::size_t v = m; v < stop; ++v) {
        const Row<N> row = Row<N>::load(right + v * N);
        for (int i = 0; i < rows; ++i) products[i].add_scaled(left[v * N + static_cast<std::size_t>(first + i)], row);
      }
      for (int i = 0; i < rows; ++i) {
        float* sum = sums + static_cast<std::size_t>(first + i) * N;
        products[i].add(Row<N>::load(sum));
        products[i].store(sum);
      }
    }
  }
}

template <int N, int C1, int C2>
void retreat_corners(const float* marginals, const Message& first, const Message& second, float* gradient,
                     float* total, std::size_t begin, std::size_t end) {
  // In blocks and with rows fetched ahead, as the forward update.
  constexpr std::size_t block = 8;
  constexpr std::size_t ahead = 8;
  for (std::size_t p = begin; p < end; p += block) {
    const std::size_t stop = end - p < block ? end : p + block;
    for (std::size_t q = p; q < stop; ++q) {
      if (N >= 8 && q + ahead < end) {
        prefetch_message<N>(first, q + ahead);
        prefetch_message<N>(second, q + ahead);
      }
      Row<N> sum = Row<N>::zero();
      add_message<N, C1>(first, q, sum);
      add_message<N, C2>(second, q, sum);
      sum.store(gradient + q * N);
    }
    for (std::size_t q = p; q < stop; ++q) {
      const Row<N> marginal = Row<N>::load(marginals + q * N);
      Row<N> row = Row<N>::load(gradient + q * N);
      row.multiply(marginal);
      row.add_scaled(-row.total(), marginal);
      row.store(gradient + q * N);
      if (total == nullptr) continue;
      row.add(Row<N>::load(total + q * N));
      row.store(total + q * N);
    }
  }
}

template <int N>
void retreat_of(const float* marginals, const Message& first, const Message& second, float* gradient, float* total,
                std::size_t begin, std::size_t end) {
  const int a = first.n_corners;
  const int b = second.n_corners;
  if (a == 3 && b == 6) return retreat_corners<N, 3, 6>(marginals, first, second, gradient, total, begin, end);
  if (a == 3 && b == 4) return retreat_corners<N, 3, 4>(marginals, first, second, gradient, total, begin, end);
  if (a == 4 && b == 5) return retreat_corners<N, 4, 5>(marginals, first, second, gradient, total, begin, end);
  retreat_corners<N, 0, 0>(marginals, first, second, gradient, total, begin, end);
}

void to_rows(int width, const Planes& planes, const Square& square, const float* values, float scale, float* rows) {
  CRFASRNN_BY_WIDTH(to_rows_of, planes, square, values, scale, rows)
}

void to_planes(int width, const Planes& planes, const Square& square, const float* rows, float scale, float* values) {
  CRFASRNN_BY_WIDTH(to_planes_of, planes, square, rows, scale, values)
}

void add_products(int width, const float* left, const float* right, float* sums, std::size_t begin,
                  std::size_t end) {
  CRFASRNN_BY_WIDTH(add_products_of, left, right, sums, begin, end)
}

void retreat(int width, const float* marginals, const Message& first, const Message& second, float* gradient,
             float* total, std::size_t begin, std::size_t end) {
  CRFASRNN_BY_WIDTH(retreat_of, marginals, first, second, gradient, total, begin, end)
}

double dot(const float* a, const float* b, std::size_t begin, std::size_t end) {
  using Pack = WidestPack;
  constexpr std::size_t width = Pack::width;
  constexpr std::size_t piece = 16 * width;
  double total = 0.0;
  std::size_t i = begin;
  for (; i + piece <= end; i += piece) {
    Pack sums[4] = {Pack::zero(), Pack::zero(), Pack::zero(), Pack::zero()};
    for (std::size_t j = i; j < i + piece; j += 4 * width) {
      for (std::size_t k = 0; k < 4; ++k) {
        sums[k] = Pack::fused(Pack::load(a + j + k * width), Pack::load(b + j + k * width), sums[k]);
      }
    }
    total += static_cast<double>(((sums[0] + sums[1]) + (sums[2] + sums[3])).total());
  }
  for (; i < end; ++i) total += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return total;
}

}  // namespace

extern const TrainingKernels training_table;
const TrainingKernels training_table{to_rows, to_planes, add_products, retreat, dot};

}  // namespace crfasrnn::CRFASRNN_ISA
