// In which order the pixels of an image are points, and how arrays go from one order to the other.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace crfasrnn {

// Rows of 64 * 64 pixels with 24 values take 384 KiB, a part of a second-level cache; of the vertices of
// a photograph more than half have all their points in one such square.
inline constexpr std::size_t square_side = 64;

// The squares that the last two axes of an image are cut into, row by row of squares, those at the border
// smaller. The points of a square follow one another.
std::vector<Square> squares_of(std::span<const std::size_t> space);

// Which point each pixel is. Points are taken in order, or as order_pixels gives them: in any order within
// each square.
class PixelOrder {
 public:
  // Point p is pixel p.
  explicit PixelOrder(std::size_t n_points);
  // Nothing if `pixel_of` is no permutation that leaves every pixel in its square. Throws std::bad_alloc; takes
  // pauses.
  static std::optional<PixelOrder> of(std::span<const std::uint32_t> pixel_of, std::span<const std::size_t> space);

  Planes planes(int n_labels) const;
  const std::vector<Square>& squares() const { return squares_; }
  // How many points the largest of them has.
  std::size_t largest_square() const {
    std::size_t most = 0;
    for (const Square& square : squares_) most = std::max(most, square.n_points());
    return most;
  }
  // Call body(square) for parts of the image that together are all of it, in any order and on any thread.
  template <class Body>
  void for_squares(const Body& body) const {
    parallel_for(squares_.size(), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t s = begin; s < end; ++s) body(squares_[s]);
    });
  }

 private:
  std::size_t n_points_;
  Buffer<std::uint32_t> point_of_;  // [N], empty when point p is pixel p
  std::vector<Square> squares_;
};

}  // namespace crfasrnn
