// The permutohedral lattice (Adams, Baek and Davis 2010): high-dimensional Gaussian filtering in
// time linear in the number of points. Knows neither Python nor torch.
//
// Letters: N points, d feature dimensions, M vertices, V values per point.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"

namespace crfasrnn {

enum class BuildError {
  non_finite,       // a feature is NaN or infinite
  out_of_range,     // a feature is too large for float32 to tell neighbouring vertices apart
  too_many_points,  // N * (d + 1) does not fit 31 bits
  bad_shape,        // d outside 1..16, or N * d differs from the number of features
};

// Elevated coordinates up to 2^20: float32 keeps three binary digits behind the point there.
inline constexpr float coordinate_limit = 1048576.0F;

// Axes that are blurred together, block by block. Every block of vertices is closed under steps along
// all axes of its group and small enough for the cache to hold it while they take their turns.
struct BlurGroup {
  // One axis: chains of neighbouring vertices, and where in them each block starts [n_blocks + 1].
  struct Axis {
    Buffer<std::uint32_t> chain;
    Buffer<std::uint32_t> start;
  };
  std::size_t n_blocks = 0;
  std::vector<Axis> axes;
};

class PointSource;

// Called by the thread that asked for a lattice with (done, total), again and again while it is built; what
// it throws ends that.
using OnStep = std::function<void(int, int)>;

class Lattice {
 public:
  // Returns the error when there is one; throws std::bad_alloc when memory runs out.
  static std::optional<BuildError> build(const PointSource& points, std::unique_ptr<Lattice>& result,
                                         const OnStep& on_step = {});
  // features: [N, d] row-major, already divided by the widths of the Gaussian.
  static std::optional<BuildError> build(std::span<const float> features, std::size_t n_points, int n_dims,
                                         std::unique_ptr<Lattice>& result);

  std::size_t n_points() const { return n_points_; }
  std::size_t n_vertices() const { return n_vertices_; }
  int n_dims() const { return n_dims_; }
  int n_corners() const { return n_dims_ + 1; }
  std::size_t n_bytes() const;

  // out [N, V] = slice(blur(splat(values [N, V]))); the transpose blurs the axes in opposite order.
  // May be called from several threads at once. `values` and `out` must not overlap.
  void filter(std::span<const float> values, std::span<float> out, std::size_t n_values, bool transpose) const;

  // out [N] = filter of ones: the row sums of the kernel matrix.
  void row_sums(std::span<float> out) const;

  // The gain of slicing, 1 / (1 + 2^-d), which makes the kernel's centre come out near 1.
  float slice_gain() const;

  // For the mean field, which runs the three stages itself.
  const std::uint32_t* vertex_of() const { return vertex_of_.data(); }      // [N, d + 1]
  const float* weight_of() const { return weight_of_.data(); }              // [N, d + 1]
  const std::uint32_t* splat_start() const { return splat_start_.data(); }  // [M + 1]
  const SplatEntry* splat_entries() const { return splat_entries_.data(); } // [N * (d + 1)]
  // `entries` may be a copy of splat_entries() with other weights; `map` acts on every finished vertex.
  void splat(int width, const SplatEntry* entries, const ValueRows& values, const LabelMap& map,
             float* vertices) const;
  // The same for marginals [N, width] in shares, in units of 1 / whole_share.
  void splat_shares(int width, const SplatEntry* entries, const Share* marginals, const LabelMap& map,
                    float* vertices) const;
  void blur(int width, float* vertices, bool transpose) const;
  // For single values: the sums of all vertices [M] in an order in which those of equally many entries follow one
  // another, and splat in that order. The ends of their loops can be predicted.
  Buffer<ScalarSum> scalar_sums() const;
  void splat_scalars(const Buffer<ScalarSum>& sums, const SplatEntry* entries, const float* values, float* vertices) const;

 private:
  Lattice() = default;
  template <class Keys>
  void number_vertices(const PointSource& points, const Keys& vertex_keys, const OnStep& on_step);

  std::size_t n_points_ = 0;
  std::size_t n_vertices_ = 0;
  int n_dims_ = 0;
  Buffer<std::uint32_t> vertex_of_;
  Buffer<float> weight_of_;
  Buffer<std::uint32_t> splat_start_;
  Buffer<SplatEntry> splat_entries_;
  std::vector<BlurGroup> groups_;  // in the order in which their axes are blurred
};

}  // namespace crfasrnn
