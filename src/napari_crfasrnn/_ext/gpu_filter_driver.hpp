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
  const auto stride = static_cast<int>(n_values);
  if (n_values > static_cast<std::size_t>(INT32_MAX)) throw std::invalid_argument("values must be [N, V] with V < 2**31");
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
                                        InputRows<P, Whole>{in, stride, static_cast<int>(count)}, nullptr,
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
                        Blur<P>{tables_.links + axis * n_vertices_, vertices.rows[i % 2],
                                vertices.rows[(i + 1) % 2], width});
      }
      const Corners corners{geometry_.vertex_of, geometry_.weight_of, vertices.rows[(n_dims_ + 1) % 2],
                            n_corners(), 1.0F / (1.0F + std::ldexp(1.0F, -n_dims_)), width};
      if (is_whole(target)) {
        device.for_each(n_points_, packs, Slice<P, true>{corners, target, stride, static_cast<int>(count)});
      } else {
        device.for_each(n_points_, packs, Slice<P, false>{corners, target, stride, static_cast<int>(count)});
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

template <class Device>
struct GpuMeanField<Device>::Parts {
  VertexRows vertices[2];
  float* logits;     // [N, width]
  float* marginals;  // [N, width]
  float* maps;       // [2, L, width]
  std::int32_t* is_diagonal;
};

template <class Device>
template <class C>
typename GpuMeanField<Device>::Parts GpuMeanField<Device>::carve(C& carver) const {
  const auto w = static_cast<std::size_t>(width());
  const std::size_t n = lattices_[0]->n_points();
  Parts parts{};
  for (int k = 0; k < 2; ++k) {
    parts.vertices[k] = VertexRows::carve(carver, lattices_[k]->n_vertices(), lattices_[k]->n_segments(), width());
  }
  parts.logits = carver.template take<float>(n * w);
  parts.marginals = carver.template take<float>(n * w);
  parts.maps = carver.template take<float>(2 * static_cast<std::size_t>(n_labels_) * w);
  parts.is_diagonal = carver.template take<std::int32_t>(1);
  return parts;
}

template <class Device>
std::size_t GpuMeanField<Device>::workspace_bytes() const {
  Carver carver;
  carve(carver);
  return carver.used();
}

// Everything between the logits that came in and the last pass over the points.
template <class Device>
template <int P, class Update>
void GpuMeanField<Device>::iterate(Device& device, const Setting& setting, const Parts& parts,
                                   const Update& update) const {
  const int w = width();
  const int packs = w / P;
  const auto splat = [&](int k) {
    const GpuLattice<Device>& l = *lattices_[k];
    return Splat<P, true>{l.tables_.segment_begin, l.tables_.segment_target, l.geometry_.entries,
                          InputRows<P, true>{parts.marginals, w, w}, setting.before[k],
                          parts.vertices[k].rows[0], parts.vertices[k].rows[1], w};
  };
  const auto add_long = [&](int k) {
    return AddLong<P>{lattices_[k]->tables_.long_vertices, parts.vertices[k].rows[1], parts.vertices[k].rows[0], w};
  };
  const auto blur = [&](int k, int axis) {
    const GpuLattice<Device>& l = *lattices_[k];
    return Blur<P>{l.tables_.links + static_cast<std::size_t>(axis) * l.n_vertices_,
                   parts.vertices[k].rows[axis % 2], parts.vertices[k].rows[(axis + 1) % 2], w};
  };
  // Both kernels share every launch: the small spatial lattice hides behind the bilateral one.
  for (int i = 0; i < setting.n_iterations; ++i) {
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
    if (i + 1 < setting.n_iterations) update();
  }
}

template <class Device>
template <int P>
void GpuMeanField<Device>::run(Device& device, const Arguments& a, const Parts& parts, const Setting& setting) {
  constexpr int threads = 256;
  const int w = width();
  const int packs = w / P;
  const std::size_t n = lattices_[0]->n_points();
  const RowsOfBlock rows{n, n_labels_, w, packs, std::max(1, threads / packs)};
  const auto block_rows = static_cast<std::size_t>(rows.block_rows);
  const std::size_t n_blocks = (n + block_rows - 1) / block_rows;
  const auto n_pixels = static_cast<std::uint32_t>(n / a.n_images);

  const auto corners = [&](int k) {
    const GpuLattice<Device>& l = *lattices_[k];
    return Corners{l.geometry_.vertex_of, l.geometry_.weight_of, parts.vertices[k].rows[l.n_corners() % 2],
                   l.n_corners(), 1.0F / (1.0F + std::ldexp(1.0F, -l.n_dims())), w};
  };
  const auto update = [&](float* out) {
    const UpdateMarginals<P> item{corners(0),  corners(1),        a.after[0], a.after[1],      parts.logits,
                                  parts.maps,  parts.is_diagonal, rows,       parts.marginals, {out, n_pixels, n_labels_},
                                  a.output_scale};
    device.blocks(n_blocks, packs, rows.block_rows, item.n_scratch(), item);
  };
  const auto iterate_all = [&] { iterate<P>(device, setting, parts, [&] { update(nullptr); }); };

  const LoadLogits<P> load{{a.unary, n_pixels, n_labels_}, a.unary_scale, rows, parts.logits, parts.marginals};
  const LoadMaps load_maps{a.maps[0], a.maps[1], rows, parts.maps, parts.is_diagonal};
  device.blocks_two(1, load_maps, n_blocks, load, packs, rows.block_rows, load.n_scratch());
  const bool is_repeated = setting == last_;
  if (!is_repeated) {
    graph_.reset();
    last_ = setting;
  } else if (graph_ == nullptr && !device.is_capturing()) {
    graph_ = device.record(iterate_all);
  }
  if (graph_ != nullptr && !device.is_capturing()) {
    device.replay(graph_.get());
  } else {
    iterate_all();
  }
  update(a.out);
}

template <class Device>
void GpuMeanField<Device>::run(const Arguments& a, Memory workspace, const Where& where) {
  if (a.n_iterations < 1) throw std::invalid_argument("n_iterations must be at least 1");
  if (a.n_images < 1 || lattices_[0]->n_points() % a.n_images != 0) {
    throw std::invalid_argument("the points must be those of n_images images of one size");
  }
  Carver carver(workspace);
  const Parts parts = carve(carver);
  carver.check();
  if (lattices_[0]->n_points() == 0) return;
  Device device(where);
  const Setting setting{{a.before[0], a.before[1]}, {a.after[0], a.after[1]}, a.n_iterations, workspace.data,
                        where.device};
  by_pack(static_cast<std::size_t>(n_labels_), [&]<int P>() { run<P>(device, a, parts, setting); });
}

}  // namespace crfasrnn::gpu
