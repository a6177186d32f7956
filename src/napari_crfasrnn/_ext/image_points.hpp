// The pixels of an image as points of a lattice: in which order, and with which features.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace crfasrnn {

// An order of the pixels in which neighbours share lattice vertices: squares of the last two axes, one
// after the other, and in each of them pixels of like colour together. The filter then finds most of
// what it reads in the cache. `image` is [C, N] with N the product of `space`; channels after the
// third do not take part; colours that differ by less than `colour_step` count as alike.
void order_pixels(std::span<const float> image, std::span<const std::size_t> space, float colour_step,
                  std::span<std::uint32_t> pixel_of);

// features [N, S + C] of the pixels in that order: positions, last axis first, over `position_width`,
// then channels over `colour_width`.
void pixel_features(std::span<const float> image, std::span<const std::size_t> space,
                    std::span<const std::uint32_t> pixel_of, float position_width, float colour_width,
                    std::span<float> features);

}  // namespace crfasrnn
