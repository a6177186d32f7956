#include "pixel_order.hpp"

#include <algorithm>
#include <atomic>

#include "parallel.hpp"

namespace crfasrnn {

std::vector<Square> squares_of(std::span<const std::size_t> space) {
  constexpr std::size_t side = square_side;
  const std::size_t width = space.back();
  const std::size_t height = space.size() > 1 ? space[space.size() - 2] : 1;
  std::size_t n_planes = 1;
  for (std::size_t axis = 0; axis + 2 < space.size(); ++axis) n_planes *= space[axis];
  std::vector<Square> squares;
  std::size_t n_points = 0;
  for (std::size_t plane = 0; plane < n_planes; ++plane) {
    for (std::size_t top = 0; top < height; top += side) {
      for (std::size_t left = 0; left < width; left += side) {
        const std::size_t first_pixel = (plane * height + top) * width + left;
        squares.push_back({n_points, first_pixel, std::min(side, height - top), std::min(side, width - left), width});
        n_points += squares.back().n_points();
      }
    }
  }
  return squares;
}

PixelOrder::PixelOrder(std::size_t n_points) : n_points_(n_points) {
  constexpr std::size_t size = square_side * square_side;
  for (std::size_t p = 0; p < n_points; p += size) squares_.push_back({p, p, 1, std::min(size, n_points - p), 0});
}

std::optional<PixelOrder> PixelOrder::of(std::span<const std::uint32_t> pixel_of, std::span<const std::size_t> space) {
  constexpr std::size_t grain = 1 << 14;
  const std::size_t n = pixel_of.size();
  PixelOrder order(0);
  order.n_points_ = n;
  if (n == 0) return order;
  order.squares_ = squares_of(space);
  order.point_of_ = Buffer<std::uint32_t>(n);
  std::uint32_t* point_of = order.point_of_.data();
  std::atomic<bool> fits{true};
  parallel_for(n, grain, [&](std::size_t begin, std::size_t end) {
    std::fill(point_of + begin, point_of + end, static_cast<std::uint32_t>(n));
  });
  in_pieces(n, pause, [&](std::size_t begin, std::size_t end) {
    for (std::size_t p = begin; p < end; ++p) {
      if (pixel_of[p] < n) point_of[pixel_of[p]] = static_cast<std::uint32_t>(p);
    }
  });
  // If every pixel is some point of its square, then no two points were the same pixel.
  parallel_for(order.squares_.size(), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t s = begin; s < end; ++s) {
      const Square& square = order.squares_[s];
      bool inside = true;
      for (std::size_t y = 0; y < square.rows; ++y) {
        const std::uint32_t* row = point_of + square.first_pixel + y * square.stride;
        for (std::size_t x = 0; x < square.columns; ++x) inside &= row[x] - square.first_point < square.n_points();
      }
      if (!inside) fits.store(false, std::memory_order_relaxed);
    }
  });
  if (!fits.load()) return std::nullopt;
  return order;
}

Planes PixelOrder::planes(int n_labels) const {
  return {n_points_, n_labels, point_of_.size() == 0 ? nullptr : point_of_.data()};
}

}  // namespace crfasrnn
