#include "mean_field.hpp"

#include <algorithm>
#include <atomic>

#include "parallel.hpp"

namespace crfasrnn {
namespace {

constexpr std::size_t grain = 1 << 11;

template <class T>
Buffer<T> copied(std::span<const T> source) {
  Buffer<T> copy(source.size());
  std::copy(source.begin(), source.end(), copy.data());
  return copy;
}

// A matrix as the kernels want it. A multiple of the identity (Potts) costs nothing at the vertices:
// it becomes a factor of the message.
struct Map {
  LabelMap map;
  float scale = -1.0F;
  Buffer<float> weights;

  Map(std::span<const float> matrix, int n_labels, int width) {
    const auto n = static_cast<std::size_t>(n_labels);
    const auto w = static_cast<std::size_t>(width);
    bool diagonal = true;
    bool uniform = true;
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        if (i != j && matrix[i * n + j] != 0.0F) diagonal = false;
      }
      if (matrix[i * n + i] != matrix[0]) uniform = false;
    }
    if (diagonal && uniform) {
      scale = -matrix[0];
      return;
    }
    weights = Buffer<float>(diagonal ? w : n * w);
    std::fill(weights.data(), weights.data() + weights.size(), 0.0F);
    for (std::size_t i = 0; i < n; ++i) {
      if (diagonal) {
        weights[i] = matrix[i * n + i];
      } else {
        for (std::size_t j = 0; j < n; ++j) weights[j * w + i] = matrix[i * n + j];
      }
    }
    map = {diagonal ? LabelMap::Kind::diagonal : LabelMap::Kind::full, weights.data(), n_labels};
  }
};

}  // namespace

MeanField::Side::Side(const Kernel& kernel) : lattice(kernel.lattice), after(copied(kernel.after)) {
  if (kernel.before.empty()) return;
  entries = Buffer<SplatEntry>(lattice->n_points() * static_cast<std::size_t>(lattice->n_corners()));
  const SplatEntry* source = lattice->splat_entries();
  parallel_for(entries.size(), 1 << 15, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      entries[i] = {source[i].point, source[i].weight * kernel.before[source[i].point]};
    }
  });
}

MeanField::MeanField(const Kernel& spatial, const Kernel& bilateral, std::span<const std::uint32_t> pixel_of)
    : spatial_(spatial), bilateral_(bilateral), pixel_of_(copied(pixel_of)) {}

bool MeanField::run(std::span<const float> unary, int n_labels, const Weights& weights, int n_iterations,
                    std::span<float> out) const {
  const std::size_t n = n_points();
  const int width = padded_width(static_cast<std::size_t>(n_labels));
  const auto w = static_cast<std::size_t>(width);
  const Kernels& k = kernels();
  const Planes planes{n, n_labels, pixel_of_.size() == 0 ? nullptr : pixel_of_.data()};

  Buffer<float> logits(n * w);     // the scaled unary
  Buffer<float> marginals(n * w);  // after the last iteration: the refined logits
  std::atomic<bool> finite{true};
  parallel_for(n, grain, [&](std::size_t begin, std::size_t end) {
    if (!k.pack(width, planes, unary.data(), weights.unary_scale, logits.data(), marginals.data(), begin, end)) {
      finite.store(false, std::memory_order_relaxed);
    }
  });
  if (!finite.load()) return false;

  const Map maps[2] = {Map(weights.spatial, n_labels, width), Map(weights.bilateral, n_labels, width)};
  const Side* sides[2] = {&spatial_, &bilateral_};
  Buffer<float> vertices[2];
  Message messages[2];
  for (int i = 0; i < 2; ++i) {
    const Lattice& lattice = *sides[i]->lattice;
    vertices[i] = Buffer<float>(lattice.n_vertices() * w);
    messages[i] = {lattice.vertex_of(),
                   lattice.weight_of(),
                   vertices[i].data(),
                   sides[i]->after.size() == 0 ? nullptr : sides[i]->after.data(),
                   maps[i].scale * lattice.slice_gain(),
                   lattice.n_corners()};
  }
  const ValueRows rows{marginals.data(), w, static_cast<std::uint32_t>(n), nullptr, 0};
  for (int iteration = 0; iteration < n_iterations; ++iteration) {
    for (int i = 0; i < 2; ++i) {
      const Side& side = *sides[i];
      const SplatEntry* entries = side.entries.size() == 0 ? side.lattice->splat_entries() : side.entries.data();
      side.lattice->splat(width, entries, rows, maps[i].map, vertices[i].data());
      side.lattice->blur(width, vertices[i].data(), false);
    }
    const bool last = iteration + 1 == n_iterations;
    parallel_for(n, grain, [&](std::size_t begin, std::size_t end) {
      k.update(width, logits.data(), messages[0], messages[1], !last, marginals.data(), begin, end);
    });
  }
  parallel_for(n, grain, [&](std::size_t begin, std::size_t end) {
    k.unpack(width, planes, marginals.data(), weights.output_scale, out.data(), begin, end);
  });
  return true;
}

}  // namespace crfasrnn
