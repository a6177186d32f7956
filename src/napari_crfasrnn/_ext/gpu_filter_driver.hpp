// The order of the steps of filtering and of the mean field, on any device; see gpu_build_driver.hpp.
#pragma once

#include <algorithm>
#include <cmath>

#include "gpu_build_driver.hpp"
#include "gpu_mean_field_items.hpp"

namespace crfasrnn::gpu {

template <class F>
void by_pack(std::size_t n_values, F&& f) {
  switch (pack_size(n_values)) {
    case 1: return f.template operator()<1>();
    case 2: return f.template operator()<2>();
    default: return f.template operator()<4>();
  }
}

// Two sets of vertex rows, between which the blur goes back and forth. The second also holds the
// partial sums of the splat, one for each segment.
struct VertexRows {
  float* rows[2];

  template <class C>
  static VertexRows carve(C& carver, std::size_t n_vertices, std::size_t n_segments, int width) {
    const auto w = static_cast<std::size_t>(width);
    VertexRows v{};
    v.rows[0] = carver.template take<float>(n_vertices * w);
    v.rows[1] = carver.template take<float>(std::max(n_vertices, n_segments) * w);
    return v;
  }
};

template <class Device>
std::size_t GpuLattice<Device>::workspace_bytes(std::size_t n_values) const {
  Carver carver;
  VertexRows::carve(carver, n_vertices_, n_segments_, row_width(std::min<std::size_t>(n_values, max_width)));
  return carver.used();
}

template <class Device>
void GpuLattice<Device>::filter(const float* values, float* out, std::size_t n_values, bool transpose,
                                Memory workspace, const Where& where) const {
  require(stage_ == Stage::linked);
  if (n_points_ == 0 || n_values == 0) return;
  Device device(where);
  for (std::size_t first = 0; first < n_values; first += max_width) {
    const std::size_t count = std::min<std::size_t>(n_values - first, max_width);
    const int width = row_width(count);
    Carver carver(workspace);
    VertexRows vertices = VertexRows::carve(carver, n_vertices_, n_segments_, width);
    carver.check();
    const float* in = values + first;
    float* target = out + first;
    by_pack(count, [&]<int P>() {
      const int packs = width / P;
      const auto is_whole = [&](const float* p) {
        return count % P == 0 && n_values % P == 0 && reinterpret_cast<std::uintptr_t>(p) % (4 * P) == 0;
      };
      const auto splat = [&]<bool Whole>() {
        device.for_each(n_segments_, packs,
                        Splat<P, Whole>{tables_.segment_begin, tables_.segment_target, geometry_.entries,
                                        InputRows<P, Whole>{in, n_values, static_cast<int>(count)}, nullptr,
                                        vertices.rows[0], vertices.rows[1], width});
      };
      if (is_whole(in)) {
        splat.template operator()<true>();
      } else {
        splat.template operator()<false>();
      }
      device.blocks(n_long_, packs, AddLong<P>::lanes, static_cast<std::size_t>(AddLong<P>::lanes * width),
                    AddLong<P>{tables_.long_vertices, vertices.rows[1], vertices.rows[0], width});
      for (int i = 0; i <= n_dims_; ++i) {
        const auto axis = static_cast<std::size_t>(transpose ? n_dims_ - i : i);
        device.for_each(n_vertices_, packs,
                        Blur<P>{tables_.neighbours + axis * n_vertices_ * 2, vertices.rows[i % 2],
                                vertices.rows[(i + 1) % 2], width});
      }
      const Corners corners{geometry_.vertex_of, geometry_.weight_of, vertices.rows[(n_dims_ + 1) % 2],
                            n_corners(), 1.0F / (1.0F + std::ldexp(1.0F, -n_dims_)), width};
      if (is_whole(target)) {
        device.for_each(n_points_, packs, Slice<P, true>{corners, target, n_values, static_cast<int>(count)});
      } else {
        device.for_each(n_points_, packs, Slice<P, false>{corners, target, n_values, static_cast<int>(count)});
      }
    });
  }
}

template <class Device>
GpuMeanField<Device>::GpuMeanField(const GpuLattice<Device>& spatial, const GpuLattice<Device>& bilateral, int n_labels)
    : lattices_{&spatial, &bilateral}, n_labels_(n_labels) {
  if (n_labels < 1 || n_labels > max_width) throw std::invalid_argument("the mean field takes 1 to 64 labels");
  if (spatial.n_points() != bilateral.n_points()) {
    throw std::invalid_argument("both lattices must be around the same points");
  }
  spatial.require(spatial.stage_ == GpuLattice<Device>::Stage::linked);
  bilateral.require(bilateral.stage_ == GpuLattice<Device>::Stage::linked);
}

namespace detail {
template <class Lattice, class C>
float* carve_mean_field(C& carver, const Lattice* const* lattices, int width, VertexRows* vertices) {
  for (int k = 0; k < 2; ++k) {
    vertices[k] = VertexRows::carve(carver, lattices[k]->n_vertices(), lattices[k]->n_segments(), width);
  }
  return carver.template take<float>(lattices[0]->n_points() * static_cast<std::size_t>(width));
}
}  // namespace detail

template <class Device>
std::size_t GpuMeanField<Device>::workspace_bytes() const {
  Carver carver;
  VertexRows vertices[2];
  detail::carve_mean_field(carver, lattices_, width(), vertices);
  return carver.used();
}

template <class Device>
template <int P>
void GpuMeanField<Device>::queue(Device& device, const Arguments& a, Memory workspace) const {
  Carver carver(workspace);
  VertexRows vertices[2];
  const int w = width();
  float* marginals = detail::carve_mean_field(carver, lattices_, w, vertices);
  carver.check();
  const int packs = w / P;
  const std::size_t n = lattices_[0]->n_points();
  constexpr int threads = 256;
  const int block_rows = std::max(1, threads / packs);
  const std::size_t n_blocks = (n + static_cast<std::size_t>(block_rows) - 1) / static_cast<std::size_t>(block_rows);

  const auto corners = [&](int k) {
    const GpuLattice<Device>& l = *lattices_[k];
    return Corners{l.geometry_.vertex_of, l.geometry_.weight_of, vertices[k].rows[l.n_corners() % 2], l.n_corners(),
                   1.0F / (1.0F + std::ldexp(1.0F, -l.n_dims())), w};
  };
  const auto update = [&](bool is_first, bool is_last) {
    const UpdateMarginals<P> item{corners(0), corners(1), a.after[0],  a.after[1],  a.unary, a.maps, a.is_diagonal,
                                  a.state,    marginals,  n,           n_labels_,   w,       packs,  block_rows,
                                  is_first,   is_last};
    device.blocks(n_blocks, packs, block_rows, item.n_scratch(), item);
  };
  const auto splat = [&](int k) {
    const GpuLattice<Device>& l = *lattices_[k];
    return Splat<P, true>{l.tables_.segment_begin, l.tables_.segment_target, l.geometry_.entries,
                          InputRows<P, true>{marginals, static_cast<std::size_t>(w), w}, a.before[k],
                          vertices[k].rows[0], vertices[k].rows[1], w};
  };
  const auto add_long = [&](int k) {
    return AddLong<P>{lattices_[k]->tables_.long_vertices, vertices[k].rows[1], vertices[k].rows[0], w};
  };
  const auto blur = [&](int k, int axis) {
    const GpuLattice<Device>& l = *lattices_[k];
    return Blur<P>{l.tables_.neighbours + static_cast<std::size_t>(axis) * l.n_vertices_ * 2,
                   vertices[k].rows[axis % 2], vertices[k].rows[(axis + 1) % 2], w};
  };

  // Both kernels share every launch: the small spatial lattice hides behind the bilateral one.
  update(true, false);
  for (int i = 0; i < a.n_iterations; ++i) {
    device.for_each_two(lattices_[0]->n_segments_, splat(0), lattices_[1]->n_segments_, splat(1), packs);
    device.blocks_two(lattices_[0]->n_long_, add_long(0), lattices_[1]->n_long_, add_long(1), packs, AddLong<P>::lanes,
                      static_cast<std::size_t>(AddLong<P>::lanes * w));
    const int n_axes[2] = {lattices_[0]->n_corners(), lattices_[1]->n_corners()};
    for (int axis = 0; axis < std::max(n_axes[0], n_axes[1]); ++axis) {
      // Past its last axis a lattice has nothing to do.
      const std::size_t rows[2] = {axis < n_axes[0] ? lattices_[0]->n_vertices_ : 0,
                                   axis < n_axes[1] ? lattices_[1]->n_vertices_ : 0};
      device.for_each_two(rows[0], blur(0, std::min(axis, n_axes[0] - 1)), rows[1],
                          blur(1, std::min(axis, n_axes[1] - 1)), packs);
    }
    update(false, i + 1 == a.n_iterations);
  }
}

template <class Device>
void GpuMeanField<Device>::queue(Device& device, const Arguments& arguments, Memory workspace) const {
  by_pack(static_cast<std::size_t>(n_labels_), [&]<int P>() { queue<P>(device, arguments, workspace); });
}

template <class Device>
void GpuMeanField<Device>::run(const Arguments& arguments, Memory workspace, const Where& where) {
  if (arguments.n_iterations < 1) throw std::invalid_argument("n_iterations must be at least 1");
  if (workspace.n_bytes < workspace_bytes()) throw std::invalid_argument("run needs a block of workspace_bytes()");
  if (lattices_[0]->n_points() == 0) return;
  Device device(where);
  const bool is_repeated = arguments == last_ && workspace.data == last_workspace_ && where.device == last_device_;
  if (!is_repeated) {
    graph_.reset();
    last_ = arguments;
    last_workspace_ = workspace.data;
    last_device_ = where.device;
  }
  if (device.is_capturing() || !is_repeated) return queue(device, arguments, workspace);
  if (graph_ == nullptr) {
    graph_ = device.record([&] { queue(device, arguments, workspace); });
  }
  if (graph_ == nullptr) return queue(device, arguments, workspace);
  device.replay(graph_.get());
}

}  // namespace crfasrnn::gpu
