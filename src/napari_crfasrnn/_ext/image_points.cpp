#include "image_points.hpp"

#include <algorithm>

#include "memory.hpp"
#include "parallel.hpp"
#include "pixel_order.hpp"

namespace crfasrnn {
namespace {

constexpr std::size_t n_digits = 256;
constexpr float most_steps = 31.0F;  // five bits for each of three channels

struct KeyedPixels {
  std::uint16_t key[square_side * square_side];  // of every pixel of a square, row by row
  std::uint32_t pixel[square_side * square_side];
  std::uint16_t order[square_side * square_side];
};

// Sort the pixels of a square by key: a radix sort of two passes, eight bits each. Writes the pixels.
void sort_square(KeyedPixels& square, std::size_t size, std::uint32_t* sorted) {
  std::uint32_t low[n_digits + 1] = {};
  std::uint32_t high[n_digits + 1] = {};
  for (std::size_t i = 0; i < size; ++i) {
    ++low[(square.key[i] & 0xFF) + 1];
    ++high[(square.key[i] >> 8) + 1];
  }
  for (std::size_t digit = 0; digit < n_digits; ++digit) {
    low[digit + 1] += low[digit];
    high[digit + 1] += high[digit];
  }
  for (std::size_t i = 0; i < size; ++i) square.order[low[square.key[i] & 0xFF]++] = static_cast<std::uint16_t>(i);
  for (std::size_t i = 0; i < size; ++i) {
    const std::size_t from = square.order[i];
    sorted[high[square.key[from] >> 8]++] = square.pixel[from];
  }
}

}  // namespace

void order_pixels(std::span<const float> image, std::span<const std::size_t> space, float colour_step,
                  std::span<std::uint32_t> pixel_of) {
  const std::size_t n = pixel_of.size();
  if (n == 0) return;
  const std::size_t n_channels = std::min<std::size_t>(image.size() / n, 3);
  const std::vector<Square> squares = squares_of(space);
  parallel_for(squares.size(), 1, [&](std::size_t begin, std::size_t end) {
    KeyedPixels keyed;
    for (std::size_t s = begin; s < end; ++s) {
      const Square& square = squares[s];
      std::size_t size = 0;
      for (std::size_t y = 0; y < square.rows; ++y, size += square.columns) {
        const std::size_t first = square.first_pixel + y * square.stride;
        std::int32_t key[square_side] = {};
        for (std::size_t c = 0; c < n_channels; ++c) {
          const float* values = image.data() + c * n + first;
          for (std::size_t i = 0; i < square.columns; ++i) {
            // Also for values that no cast to an integer is defined for: the bounds come before the cast.
            float steps = values[i] / colour_step;
            steps = steps > 0.0F ? steps : 0.0F;
            steps = steps < most_steps ? steps : most_steps;
            key[i] = key[i] << 5 | static_cast<std::int32_t>(steps);
          }
        }
        for (std::size_t i = 0; i < square.columns; ++i) {
          keyed.key[size + i] = static_cast<std::uint16_t>(key[i]);
          keyed.pixel[size + i] = static_cast<std::uint32_t>(first + i);
        }
      }
      sort_square(keyed, size, pixel_of.data() + square.first_point);
    }
  });
}

void PixelPoints::read(std::size_t first, std::size_t count, FeatureBlock& block) const {
  const std::uint32_t* pixel = pixel_of_.data() + first;
  std::int32_t rest[block_points];
  for (std::size_t i = 0; i < count; ++i) rest[i] = static_cast<std::int32_t>(pixel[i]);
  std::size_t dim = 0;
  for (std::size_t axis = space_.size(); axis-- > 0; ++dim) {
    const auto size = static_cast<std::int32_t>(space_[axis]);
    // Half a pixel more keeps multiples of the size from falling below: rounding is far finer. Integer
    // division would go pixel by pixel.
    const double share = axis == 0 ? 0.0 : 1.0 / static_cast<double>(size);
    for (std::size_t i = 0; i < count; ++i) {
      const auto above = static_cast<std::int32_t>((static_cast<double>(rest[i]) + 0.5) * share);
      block.of[dim][i] = static_cast<float>(rest[i] - above * size);
      rest[i] = above;
    }
    for (std::size_t i = 0; i < count; ++i) block.of[dim][i] /= position_width_;
  }
  for (std::size_t c = 0; c < n_channels_; ++c, ++dim) {
    const float* plane = image_.data() + c * pixel_of_.size();
    for (std::size_t i = 0; i < count; ++i) block.of[dim][i] = plane[pixel[i]];
    for (std::size_t i = 0; i < count; ++i) block.of[dim][i] /= colour_width_;
  }
  fill_up(count, block);
}

bool PixelPoints::find_box(FeatureBox& box) const {
  constexpr std::size_t lanes = 16;
  const std::size_t n = pixel_of_.size();
  std::size_t dim = 0;
  for (std::size_t axis = space_.size(); axis-- > 0; ++dim) {
    box.low[dim] = 0.0F;
    box.high[dim] = static_cast<float>(space_[axis] - 1) / position_width_;
  }
  for (std::size_t c = 0; c < n_channels_; ++c, ++dim) {
    const float* plane = image_.data() + c * n;
    float low[lanes];
    float high[lanes];
    float strange[lanes];  // NaN as soon as there is a value that is not finite
    for (std::size_t l = 0; l < lanes; ++l) {
      low[l] = high[l] = plane[0];
      strange[l] = 0.0F;
    }
    const auto take = [&](std::size_t i, std::size_t l) {
      const float x = plane[i];
      low[l] = x < low[l] ? x : low[l];
      high[l] = high[l] < x ? x : high[l];
      strange[l] += x - x;
    };
    in_pieces(n, pause, [&](std::size_t begin, std::size_t end) {
      std::size_t i = begin;
      for (; i + lanes <= end; i += lanes) {
        for (std::size_t l = 0; l < lanes; ++l) take(i + l, l);
      }
      for (; i < end; ++i) take(i, 0);
    });
    for (std::size_t l = 0; l < lanes; ++l) {
      if (strange[l] != 0.0F) return false;
    }
    // Dividing by a width keeps the order.
    box.low[dim] = *std::min_element(low, low + lanes) / colour_width_;
    box.high[dim] = *std::max_element(high, high + lanes) / colour_width_;
  }
  return true;
}

}  // namespace crfasrnn
