#include "image_points.hpp"

#include <algorithm>
#include <vector>

#include "parallel.hpp"

namespace crfasrnn {
namespace {

// Rows of 64 * 64 pixels with 24 values take 384 KiB, a part of a second-level cache; of the vertices of
// a photograph more than half have all their points in one such square.
constexpr std::size_t tile = 64;
constexpr std::size_t n_digits = 256;
constexpr std::uint32_t most_steps = 31;  // five bits for each of three channels

// One pass of a radix sort by eight bits of the keys.
void sort_by_digit(const std::uint32_t* from, std::uint32_t* to, const std::uint16_t* key, std::size_t size,
                   int shift) {
  std::uint32_t count[n_digits + 1] = {};
  for (std::size_t i = 0; i < size; ++i) ++count[((key[from[i]] >> shift) & 0xFF) + 1];
  for (std::size_t digit = 0; digit < n_digits; ++digit) count[digit + 1] += count[digit];
  for (std::size_t i = 0; i < size; ++i) to[count[(key[from[i]] >> shift) & 0xFF]++] = from[i];
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
    std::uint16_t key[tile * tile];
    std::uint32_t pixels[tile * tile];
    std::uint32_t order[tile * tile];
    std::uint32_t other[tile * tile];
    for (std::size_t strip = begin; strip < end; ++strip) {
      const std::size_t plane = strip / tiles_down * height * width;
      const std::size_t top = strip % tiles_down * tile;
      const std::size_t bottom = std::min(top + tile, height);
      std::uint32_t* out = pixel_of.data() + plane + top * width;
      for (std::size_t left = 0; left < width; left += tile) {
        const std::size_t right = std::min(left + tile, width);
        std::size_t size = 0;
        for (std::size_t y = top; y < bottom; ++y) {
          for (std::size_t x = left; x < right; ++x) {
            const std::size_t pixel = plane + y * width + x;
            std::uint32_t k = 0;
            for (std::size_t c = 0; c < n_channels; ++c) {
              const float steps = image[c * n + pixel] / colour_step;
              // Also for values that no cast to an integer is defined for.
              k = k << 5 | (steps >= static_cast<float>(most_steps) ? most_steps
                            : steps > 0.0F                          ? static_cast<std::uint32_t>(steps)
                                                                    : 0U);
            }
            pixels[size] = static_cast<std::uint32_t>(pixel);
            order[size] = static_cast<std::uint32_t>(size);
            key[size++] = static_cast<std::uint16_t>(k);
          }
        }
        sort_by_digit(order, other, key, size, 0);
        sort_by_digit(other, order, key, size, 8);
        for (std::size_t i = 0; i < size; ++i) *out++ = pixels[order[i]];
      }
    }
  });
}

void pixel_features(std::span<const float> image, std::span<const std::size_t> space,
                    std::span<const std::uint32_t> pixel_of, float position_width, float colour_width,
                    std::span<float> features) {
  const std::size_t n = pixel_of.size();
  if (n == 0) return;
  const std::size_t n_channels = image.size() / n;
  parallel_for(n, 1 << 14, [&](std::size_t begin, std::size_t end) {
    float* out = features.data() + begin * (space.size() + n_channels);
    for (std::size_t p = begin; p < end; ++p) {
      std::size_t rest = pixel_of[p];
      for (std::size_t axis = space.size(); axis-- > 0;) {
        *out++ = static_cast<float>(rest % space[axis]) / position_width;
        rest /= space[axis];
      }
      for (std::size_t c = 0; c < n_channels; ++c) *out++ = image[c * n + pixel_of[p]] / colour_width;
    }
  });
}

}  // namespace crfasrnn
