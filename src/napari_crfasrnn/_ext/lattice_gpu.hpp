// The lattice for devices: the same verbs as lattice.hpp, on memory that the caller owns.
//
// Nothing here allocates device memory. Every step says how many bytes it needs and works in a block
// that is handed in, so that the caller's allocator (torch's) decides where memory comes from, reuses
// it in stream order, and reports when there is none left. Pointers are to device memory; work is
// queued on the caller's stream. Only `measure` and `number` wait for it, once each: for the box
// around the features, and for the number of vertices.
//
// Letters: N points, d feature dimensions, M vertices, V values per point, L labels.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "gpu_items.hpp"

namespace crfasrnn::gpu {

// The two devices there are: lattice_cuda.cu runs items in kernels, lattice_items.cpp in host loops.
class CudaDevice;
class HostDevice;

// The caller has made the device current.
struct Where {
  int device;
  std::uintptr_t stream;
};

struct Memory {
  std::byte* data;
  std::size_t n_bytes;
};

// The device refused something; its code's name and words are in what().
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// How many devices there are; 0 where there is no driver.
int n_devices();
// Whether this was compiled for the generation of the device, which the caller has made current.
bool can_run_on(int device);
// Name and version of what compiled this.
std::string toolkit();

inline constexpr int max_width = 64;

// Floats that one thread moves at a time, and in a row that holds n_values <= 64 of them.
constexpr int pack_size(std::size_t n_values) { return n_values <= 1 ? 1 : n_values == 2 ? 2 : 4; }
constexpr int row_width(std::size_t n_values) {
  const auto pack = static_cast<std::size_t>(pack_size(n_values));
  return static_cast<int>((n_values + pack - 1) / pack * pack);
}

template <class Device>
class GpuLattice {
 public:
  // Groups of n_points / n_groups points each share no vertices: a batch of images in one lattice.
  GpuLattice(std::size_t n_points, int n_dims, std::size_t n_groups);

  std::size_t n_points() const { return n_points_; }
  int n_dims() const { return n_dims_; }
  int n_corners() const { return n_dims_ + 1; }
  std::size_t n_vertices() const { return n_vertices_; }
  std::size_t n_segments() const { return n_segments_; }
  std::size_t n_long() const { return n_long_; }

  // Build: measure, number and link, in this order, each with a block of the size it asks for.
  // `geometry` and `tables` must live as long as the lattice, `temporary` until link has been queued.
  // measure throws std::invalid_argument for features that are not finite or too large.
  std::size_t measure_bytes() const;
  void measure(const float* features, Memory scratch, const Where& where);
  std::size_t geometry_bytes() const;
  std::size_t temporary_bytes() const;
  void number(const float* features, Memory geometry, Memory temporary, const Where& where);
  std::size_t table_bytes() const;
  void link(Memory tables, const Where& where);

  // out [N, V] = slice(blur(splat(values [N, V]))), as lattice.hpp.
  std::size_t workspace_bytes(std::size_t n_values) const;
  void filter(const float* values, float* out, std::size_t n_values, bool transpose, Memory workspace,
              const Where& where) const;

 private:
  template <class>
  friend class GpuMeanField;

  struct Geometry {
    std::uint32_t* vertex_of;  // [N, d + 1]
    float* weight_of;          // [N, d + 1]
    Entry* entries;            // [E]
  };
  struct Temporary {
    std::uint64_t* words;      // [n_words, E]
    std::uint64_t* keys[2];    // [E]
    std::uint32_t* order[2];   // [E]
    std::uint64_t* wide_keys;  // [E, n_words], only for keys of several words
    std::uint32_t* start;      // [E + 1]
    Memory scratch;            // of the sort and the scans
  };
  // What link needs of number's results; all in the temporary block.
  struct Numbered {
    const std::uint32_t* number;
    const std::uint32_t* start;
    const std::uint64_t* segment;
    const std::uint64_t* vertex_keys;
  };
  struct Tables {
    std::uint32_t* segment_begin;   // [S + 1]
    std::uint32_t* segment_target;  // [S]
    LongVertex* long_vertices;      // [n_long]
    Link* links;                    // [d + 1, M]
  };

  std::size_t n_entries() const { return n_points_ * static_cast<std::size_t>(n_corners()); }
  template <class Carver>
  Geometry carve_geometry(Carver& carver) const;
  template <class Carver>
  Temporary carve_temporary(Carver& carver) const;
  template <class Carver>
  Tables carve_tables(Carver& carver) const;
  void require(bool stage_reached) const;

  std::size_t n_points_;
  int n_dims_;
  std::size_t n_groups_;
  std::size_t n_vertices_ = 0;
  std::size_t n_segments_ = 0;
  std::size_t n_long_ = 0;
  std::size_t scratch_bytes_ = 0;
  enum class Stage { empty, measured, numbered, linked } stage_ = Stage::empty;
  KeyLayout layout_{};
  Geometry geometry_{};
  Numbered numbered_{};
  Tables tables_{};
};

// The dense CRF's mean field without gradients: all iterations in one submission.
template <class Device>
class GpuMeanField {
 public:
  // Both lattices are around the same points and must outlive this. 1 <= n_labels <= 64.
  GpuMeanField(const GpuLattice<Device>& spatial, const GpuLattice<Device>& bilateral, int n_labels);

  struct Arguments {
    const float* unary;      // [B, L, N / B] logits
    float unary_scale;
    const float* maps[2];    // [L, L]: spatial, bilateral; from the column's label to what the row's logit loses
    const float* before[2];  // [N] or null: factors on what is splat, spatial and bilateral
    const float* after[2];   // [N] or null: factors on what is sliced
    float output_scale;
    float* out;              // [B, L, N / B]: output_scale times the logits after the iterations
    std::size_t n_images;    // B
    int n_iterations;        // at least 1
  };

  std::size_t workspace_bytes() const;
  // The first call with a workspace queues kernel by kernel; from the second on, where the device can, the
  // iterations are one recorded graph. Inside a capture of the caller's own it always queues kernel by kernel.
  void run(const Arguments& arguments, Memory workspace, const Where& where);
  bool has_graph() const { return graph_ != nullptr; }

 private:
  // What the iterations depend on: a graph of them serves as long as this stays.
  struct Setting {
    const float* before[2];
    const float* after[2];
    int n_iterations;
    const std::byte* workspace;
    int device;

    bool operator==(const Setting&) const = default;
  };
  struct Parts;

  int width() const { return row_width(static_cast<std::size_t>(n_labels_)); }
  template <class Carver>
  Parts carve(Carver& carver) const;
  template <int P>
  void run(Device& device, const Arguments& arguments, const Parts& parts, const Setting& setting);
  template <int P, class Update>
  void iterate(Device& device, const Setting& setting, const Parts& parts, const Update& update) const;

  const GpuLattice<Device>* lattices_[2];
  int n_labels_;
  Setting last_{};
  std::shared_ptr<void> graph_;
};

}  // namespace crfasrnn::gpu
