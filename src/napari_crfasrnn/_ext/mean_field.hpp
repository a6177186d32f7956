// Mean-field inference in a dense CRF with two Gaussian kernels, without gradients: what the
// differentiable layer in crf.py computes, in one pass over the points per iteration.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "lattice.hpp"
#include "memory.hpp"
#include "pixel_order.hpp"
#include "tiles.hpp"

namespace crfasrnn {

// Called by the thread that asked for the run with (done, total) after every iteration; may throw.
using AfterIteration = std::function<void(int, int)>;

// How marginals are stored between iterations, see shares.hpp. With two labels, and where a kernel does not
// average, they are floats always.
enum class MarginalStorage { floats, shares };

// How two kernels over the same points splat tile by tile. Found when it is first asked for.
class TiledPair {
 public:
  // Both of them.
  const TiledSplat* splats(const Lattice& first, const Lattice& second, const Tiles& tiles) const;

 private:
  mutable std::mutex mutex_;
  mutable std::vector<TiledSplat> splats_;
};

class MeanField {
 public:
  // One kernel: a lattice, and factors [N] on what goes into and comes out of its filter, which are
  // copied; an empty span stands for ones.
  struct Kernel {
    std::shared_ptr<const Lattice> lattice;
    std::span<const float> before;
    std::span<const float> after;
    bool averages = false;  // `after` makes the rows of the kernel sum to 1
  };
  // order: where each point lies in the planes of `run`.
  MeanField(const Kernel& spatial, const Kernel& bilateral, PixelOrder order);

  // The matrices [L, L] row-major map messages to what is subtracted from the logits.
  struct Weights {
    std::span<const float> spatial;
    std::span<const float> bilateral;
    float unary_scale;
    float output_scale;
    MarginalStorage storage = MarginalStorage::floats;
  };
  // out [L, N] = output_scale * (state after n_iterations), starting from unary_scale * unary [L, N].
  // Returns false when a logit is not finite; `out` is then undefined. L <= 64. What `after_iteration`
  // throws ends the run and comes out of it.
  bool run(std::span<const float> unary, int n_labels, const Weights& weights, int n_iterations,
           std::span<float> out, const AfterIteration& after_iteration = {}) const;

  std::size_t n_points() const { return spatial_.lattice->n_points(); }

  struct Side {
    std::shared_ptr<const Lattice> lattice;
    Buffer<SplatEntry> entries;  // with the factor `before` in their weights; empty without one
    Buffer<float> after;
    bool averages;

    explicit Side(const Kernel& kernel);
    const SplatEntry* splat_entries() const;
    // How a point reads the filter's message, times `scale`, from what was splatted and blurred.
    Message message(const float* vertices, float scale) const;
  };

 private:
  // Marginal: float or Share.
  template <class Marginal>
  bool run_rows(std::span<const float> unary, int n_labels, const Weights& weights, int n_iterations,
                std::span<float> out, const AfterIteration& tell) const;
  bool run_two_labels(std::span<const float> unary, const Weights& weights, int n_iterations,
                      std::span<float> out, const AfterIteration& after_iteration) const;

  Side spatial_;
  Side bilateral_;
  PixelOrder order_;
  TiledPair tiled_;
};

}  // namespace crfasrnn
