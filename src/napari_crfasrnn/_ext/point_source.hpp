// Where a lattice gets the features of its points from.
#pragma once

#include <cstddef>
#include <span>

#include "kernels.hpp"

namespace crfasrnn {

// The least box that holds the features of all points.
struct FeatureBox {
  float low[max_dims];
  float high[max_dims];
};

// Features already divided by the widths of the Gaussian, read block by block: those of an image are
// computed on the way and never stored.
class PointSource {
 public:
  virtual ~PointSource() = default;
  virtual std::size_t n_points() const = 0;
  virtual int n_dims() const = 0;
  // Fill a block with `count` points, 1 to block_points of them, and repeat the first one up to its end.
  virtual void read(std::size_t first, std::size_t count, FeatureBlock& block) const = 0;
  // The box of finite features where it costs less than reading them all; else false.
  virtual bool find_box(FeatureBox&) const { return false; }

 protected:
  void fill_up(std::size_t count, FeatureBlock& block) const {
    for (int j = 0; j < n_dims(); ++j) {
      for (std::size_t i = count; i < block_points; ++i) block.of[j][i] = block.of[j][0];
    }
  }
};

// Features [N, d] in memory, row-major.
class FeatureArray final : public PointSource {
 public:
  FeatureArray(std::span<const float> features, std::size_t n_points, int n_dims)
      : features_(features), n_points_(n_points), n_dims_(n_dims) {}

  std::size_t n_points() const override { return n_points_; }
  int n_dims() const override { return n_dims_; }
  void read(std::size_t first, std::size_t count, FeatureBlock& block) const override {
    const auto d = static_cast<std::size_t>(n_dims_);
    const float* row = features_.data() + first * d;
    for (std::size_t i = 0; i < count; ++i, row += d) {
      for (std::size_t j = 0; j < d; ++j) block.of[j][i] = row[j];
    }
    fill_up(count, block);
  }

 private:
  std::span<const float> features_;
  std::size_t n_points_;
  int n_dims_;
};

}  // namespace crfasrnn
