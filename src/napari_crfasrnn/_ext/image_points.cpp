#include "image_points.hpp"

#include <algorithm>

#include "memory.hpp"
#include "parallel.hpp"

namespace crfasrnn {
namespace {

// Rows of 64 * 64 pixels with 24 values take 384 KiB, a part of a second-level cache; of the vertices of
// a photograph more than half have all their points in one such square.
constexpr std::size_t tile = 64;
constexpr std::size_t n_digits = 256;
constexpr float most_steps = 31.0F;  // five bits for each of three channels

struct Square {
  std::uint16_t key[tile * tile];  // of every pixel, row by row
  std::uint32_t pixel[tile * tile];
  std::uint16_t order[tile * tile];
};

// Sort the pixels of a square by key: a radix sort of two passes, eight bits each. Writes the pixels.
void sort_square(Square& square, std::size_t size, std::uint32_t* sorted) {
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
  const std::size_t width = space.back();
  const std::size_t height = space.size() > 1 ? space[space.size() - 2] : 1;
  const std::size_t n_channels = std::min<std::size_t>(image.size() / n, 3);
  const std::size_t tiles_down = (height + tile - 1) / tile;
  // A row of tiles covers a run of points that is as long as the pixels above it are many.
  parallel_for(n / (height * width) * tiles_down, 1, [&](std::size_t begin, std::size_t end) {
    Square square;
    for (std::size_t strip = begin; strip < end; ++strip) {
      const std::size_t plane = strip / tiles_down * height * width;
      const std::size_t top = strip % tiles_down * tile;
      const std::size_t bottom = std::min(top + tile, height);
      std::uint32_t* out = pixel_of.data() + plane + top * width;
      for (std::size_t left = 0; left < width; left += tile) {
        const std::size_t right = std::min(left + tile, width);
        const std::size_t columns = right - left;
        std::size_t size = 0;
        for (std::size_t y = top; y < bottom; ++y, size += columns) {
          const std::size_t first = plane + y * width + left;
          std::int32_t key[tile] = {};
          for (std::size_t c = 0; c < n_channels; ++c) {
            const float* values = image.data() + c * n + first;
            for (std::size_t i = 0; i < columns; ++i) {
              // Also for values that no cast to an integer is defined for: the bounds come before the cast.
              float steps = values[i] / colour_step;
              steps = steps > 0.0F ? steps : 0.0F;
              steps = steps < most_steps ? steps : most_steps;
              key[i] = key[i] << 5 | static_cast<std::int32_t>(steps);
            }
          }
          for (std::size_t i = 0; i < columns; ++i) {
            square.key[size + i] = static_cast<std::uint16_t>(key[i]);
            square.pixel[size + i] = static_cast<std::uint32_t>(first + i);
          }
        }
        sort_square(square, size, out);
        out += size;
      }
    }
  });
}

bool is_permutation(std::span<const std::uint32_t> numbers) {
  if (std::any_of(numbers.begin(), numbers.end(), [&](std::uint32_t i) { return i >= numbers.size(); })) return false;
  Buffer<std::uint64_t> seen(numbers.size() / 64 + 1);
  std::fill_n(seen.data(), seen.size(), std::uint64_t{0});
  bool twice = false;
  for (const std::uint32_t i : numbers) {
    const std::uint64_t bit = std::uint64_t{1} << (i & 63);
    twice |= (seen[i >> 6] & bit) != 0;
    seen[i >> 6] |= bit;
  }
  return !twice;
}

void PixelPoints::read(std::size_t first, std::size_t count, FeatureBlock& block) const {
  const std::uint32_t* pixel = pixel_of_.data() + first;
  std::uint32_t rest[block_points];
  std::copy_n(pixel, count, rest);
  std::size_t dim = 0;
  for (std::size_t axis = space_.size(); axis-- > 0; ++dim) {
    const auto size = static_cast<std::uint32_t>(space_[axis]);
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t above = axis == 0 ? 0 : rest[i] / size;
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

}  // namespace crfasrnn
