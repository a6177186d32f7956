#include "image_points.hpp"

#include <algorithm>
#include <mutex>

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
  std::size_t dim = 0;
  const auto find_positions = [&]<class Real>(Real) {
    Real rest[block_points];
    for (std::size_t i = 0; i < count; ++i) rest[i] = static_cast<Real>(static_cast<std::int32_t>(pixel[i]));
    for (std::size_t axis = space_.size(); axis-- > 0; ++dim) {
      const auto size = static_cast<Real>(space_[axis]);
      // Half a pixel more keeps multiples of the size from falling below: rounding is finer. Integer division
      // would go pixel by pixel.
      const Real share = axis == 0 ? Real{0} : Real{1} / size;
      float* position = block.of[dim];
      for (std::size_t i = 0; i < count; ++i) {
        const auto above = static_cast<Real>(static_cast<std::int32_t>((rest[i] + Real{0.5}) * share));
        position[i] = static_cast<float>(rest[i] - above * size) / position_width_;
        rest[i] = above;
      }
    }
  };
  // In float, the product is off by less than half a pixel's share up to 2^22 pixels.
  if (pixel_of_.size() <= std::size_t{1} << 21) {
    find_positions(float{});
  } else {
    find_positions(double{});
  }
  for (std::size_t c = 0; c < n_channels_; ++c, ++dim) {
    const float* plane = image_.data() + c * pixel_of_.size();
    for (std::size_t i = 0; i < count; ++i) block.of[dim][i] = plane[pixel[i]];
    for (std::size_t i = 0; i < count; ++i) block.of[dim][i] /= colour_width_;
  }
  fill_up(count, block);
}

bool PixelPoints::find_box(FeatureBox& box) const {
  constexpr std::size_t lanes = 64;  // so many that compilers take them in a loop, several at a time
  constexpr std::size_t grain = lanes << 10;
  const std::size_t n = pixel_of_.size();
  std::size_t dim = 0;
  for (std::size_t axis = space_.size(); axis-- > 0; ++dim) {
    box.low[dim] = 0.0F;
    box.high[dim] = static_cast<float>(space_[axis] - 1) / position_width_;
  }
  bool is_finite = true;
  for (std::size_t c = 0; c < n_channels_ && is_finite; ++c, ++dim) {
    const float* plane = image_.data() + c * n;
    float least = plane[0];
    float greatest = plane[0];
    std::mutex mutex;
    parallel_for(n, grain, [&](std::size_t begin, std::size_t end) {
      float low[lanes];
      float high[lanes];
      float strange[lanes] = {};  // NaN as soon as there is a value that is not finite
      std::fill_n(low, lanes, plane[begin]);
      std::fill_n(high, lanes, plane[begin]);
      std::size_t i = begin;
      for (; i + lanes <= end; i += lanes) {
        for (std::size_t l = 0; l < lanes; ++l) {
          const float x = plane[i + l];
          low[l] = x < low[l] ? x : low[l];
          high[l] = high[l] < x ? x : high[l];
          strange[l] += x - x;
        }
      }
      for (; i < end; ++i) {
        low[0] = std::min(low[0], plane[i]);
        high[0] = std::max(high[0], plane[i]);
        strange[0] += plane[i] - plane[i];
      }
      const std::lock_guard lock(mutex);
      least = std::min(least, *std::min_element(low, low + lanes));
      greatest = std::max(greatest, *std::max_element(high, high + lanes));
      is_finite = is_finite && std::none_of(strange, strange + lanes, [](float x) { return x != 0.0F; });
    });
    // Dividing by a width keeps the order.
    box.low[dim] = least / colour_width_;
    box.high[dim] = greatest / colour_width_;
  }
  return is_finite;
}

}  // namespace crfasrnn
