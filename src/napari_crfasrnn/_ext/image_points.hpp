// The pixels of an image as points of a lattice: in which order, and with which features.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "point_source.hpp"

namespace crfasrnn {

// An order of the pixels in which neighbours share lattice vertices: squares of the last two axes, one
// after the other, and in each of them pixels of like colour together. The filter then finds most of
// what it reads in the cache. `image` is [C, N] with N the product of `space`; channels after the
// third do not take part; colours that differ by less than `colour_step` count as alike.
void order_pixels(std::span<const float> image, std::span<const std::size_t> space, float colour_step,
                  std::span<std::uint32_t> pixel_of);

// The pixels of an image in that order, as points: positions, last axis first, over `position_width`, then
// channels over `colour_width`. An image [0, N] has positions alone. The arrays are not copied.
class PixelPoints final : public PointSource {
 public:
  PixelPoints(std::span<const float> image, std::span<const std::size_t> space, std::span<const std::uint32_t> pixel_of,
              float position_width, float colour_width)
      : image_(image),
        space_(space),
        pixel_of_(pixel_of),
        position_width_(position_width),
        colour_width_(colour_width),
        n_channels_(pixel_of.empty() ? 0 : image.size() / pixel_of.size()) {}

  std::size_t n_points() const override { return pixel_of_.size(); }
  int n_dims() const override { return static_cast<int>(space_.size() + n_channels_); }
  void read(std::size_t first, std::size_t count, FeatureBlock& block) const override;
  bool find_box(FeatureBox& box) const override;

 private:
  std::span<const float> image_;
  std::span<const std::size_t> space_;
  std::span<const std::uint32_t> pixel_of_;
  float position_width_;
  float colour_width_;
  std::size_t n_channels_;
};

}  // namespace crfasrnn
