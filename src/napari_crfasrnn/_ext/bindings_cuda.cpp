// The Python face of lattice_gpu.hpp, for napari_crfasrnn._ext.cuda alone. Compiled twice: as
// _lattice_cuda with lattice_cuda.cu, and as _lattice_items with lattice_items.cpp for tests.
//
// Memory crosses as addresses and sizes, not by DLPack: exchanging an array that way makes the
// stream it was made on and the default stream wait for each other, which costs time and is an error
// while either is being captured. cuda.py owns the tensors and has checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>

#include "lattice_gpu.hpp"

namespace nb = nanobind;
using namespace nb::literals;
namespace gpu = crfasrnn::gpu;

namespace {

#if defined(CRFASRNN_HOST_LOOPS)
using Device = gpu::HostDevice;
#else
using Device = gpu::CudaDevice;
#endif
using Lattice = gpu::GpuLattice<Device>;
using MeanField = gpu::GpuMeanField<Device>;

using Address = std::uintptr_t;

const float* floats(Address address) { return reinterpret_cast<const float*>(address); }
float* writable_floats(Address address) { return reinterpret_cast<float*>(address); }
gpu::Memory memory(Address address, std::size_t n_bytes) { return {reinterpret_cast<std::byte*>(address), n_bytes}; }

}  // namespace

#if defined(CRFASRNN_HOST_LOOPS)
NB_MODULE(_lattice_items, m) {
#else
NB_MODULE(_lattice_cuda, m) {
#endif
  nb::set_leak_warnings(false);
  m.doc() = "The permutohedral lattice on a GPU. Use napari_crfasrnn.lattice instead.";
  const nb::call_guard<nb::gil_scoped_release> unlocked;

  nb::class_<Lattice>(m, "Lattice", "Vertices and weights of N points, in memory of the caller.")
      .def(nb::init<std::size_t, int, std::size_t>(), "n_points"_a, "n_dims"_a, "n_groups"_a = 1,
           "n_groups images of n_points / n_groups points each share no vertices.")
      .def_prop_ro("n_points", &Lattice::n_points, "N")
      .def_prop_ro("n_dims", &Lattice::n_dims, "d")
      .def_prop_ro("n_vertices", &Lattice::n_vertices, "M, known once numbered.")
      .def_prop_ro("n_segments", &Lattice::n_segments, "Pieces of splat lists, of 64 entries at most.")
      .def_prop_ro("n_long", &Lattice::n_long, "Vertices with several segments.")
      .def_prop_ro("measure_bytes", &Lattice::measure_bytes, "Size of the scratch block of measure.")
      .def_prop_ro("geometry_bytes", &Lattice::geometry_bytes, "Size of the block that number fills.")
      .def_prop_ro("temporary_bytes", &Lattice::temporary_bytes, "Size of the block that number and link work in.")
      .def_prop_ro("table_bytes", &Lattice::table_bytes, "Size of the block that link fills.")
      .def("workspace_bytes", &Lattice::workspace_bytes, "n_values"_a, "Size of the workspace of filter.")
      .def(
          "measure",
          [](Lattice& self, Address features, Address scratch, std::size_t n_bytes, int device, Address stream) {
            self.measure(floats(features), memory(scratch, n_bytes), {device, stream});
          },
          "features"_a, "scratch"_a, "n_bytes"_a, nb::kw_only(), "device"_a, "stream"_a, unlocked,
          "First step: the box around features [N, d]. Waits for the stream.\n\n"
          "Raises ValueError for NaN, infinity and coordinates beyond 2**20.")
      .def(
          "number",
          [](Lattice& self, Address features, Address geometry, std::size_t geometry_bytes, Address temporary,
             std::size_t temporary_bytes, int device, Address stream) {
            self.number(floats(features), memory(geometry, geometry_bytes), memory(temporary, temporary_bytes),
                        {device, stream});
          },
          "features"_a, "geometry"_a, "geometry_bytes"_a, "temporary"_a, "temporary_bytes"_a, nb::kw_only(),
          "device"_a, "stream"_a, unlocked, "Second step: vertices and corners. Waits for the stream.")
      .def(
          "link",
          [](Lattice& self, Address tables, std::size_t n_bytes, int device, Address stream) {
            self.link(memory(tables, n_bytes), {device, stream});
          },
          "tables"_a, "n_bytes"_a, nb::kw_only(), "device"_a, "stream"_a, unlocked,
          "Last step: splat lists and neighbours. Queued.")
      .def(
          "filter",
          [](const Lattice& self, Address values, Address out, std::size_t n_values, Address workspace,
             std::size_t n_bytes, bool transpose, int device, Address stream) {
            self.filter(floats(values), writable_floats(out), n_values, transpose, memory(workspace, n_bytes),
                        {device, stream});
          },
          "values"_a, "out"_a, "n_values"_a, "workspace"_a, "n_bytes"_a, nb::kw_only(), "transpose"_a, "device"_a,
          "stream"_a, unlocked, "Write slice(blur(splat(values [N, V]))) to out [N, V]. Queued.");

  nb::class_<MeanField>(m, "MeanField", "Mean-field iterations over two lattices, without gradients.")
      .def(nb::init<const Lattice&, const Lattice&, int>(), "spatial"_a, "bilateral"_a, "n_labels"_a,
           nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def_prop_ro("workspace_bytes", &MeanField::workspace_bytes, "Size of the workspace of run.")
      .def_prop_ro("has_graph", &MeanField::has_graph, "Whether the iterations have been recorded as a graph.")
      .def(
          "run",
          [](MeanField& self, Address unary, std::size_t n_images, float unary_scale, Address spatial_map,
             Address bilateral_map, Address spatial_before, Address spatial_after, Address bilateral_before,
             Address bilateral_after, float output_scale, Address out, int n_iterations, Address workspace,
             std::size_t n_bytes, int device, Address stream) {
            self.run({floats(unary),
                      unary_scale,
                      {floats(spatial_map), floats(bilateral_map)},
                      {floats(spatial_before), floats(bilateral_before)},
                      {floats(spatial_after), floats(bilateral_after)},
                      output_scale,
                      writable_floats(out),
                      n_images,
                      n_iterations},
                     memory(workspace, n_bytes), {device, stream});
          },
          nb::kw_only(), "unary"_a, "n_images"_a, "unary_scale"_a, "spatial_map"_a, "bilateral_map"_a,
          "spatial_before"_a, "spatial_after"_a, "bilateral_before"_a, "bilateral_after"_a, "output_scale"_a, "out"_a,
          "n_iterations"_a, "workspace"_a, "n_bytes"_a, "device"_a, "stream"_a, unlocked,
          "Write the logits after n_iterations to out [B, L, N / B], from unary of that shape. Queued. An address "
          "of 0 stands for no factors.");

  m.def("n_devices", &gpu::n_devices, "How many GPUs there are; 0 where there is no driver.");
  m.def("can_run_on", &gpu::can_run_on, "device"_a, "Whether this was compiled for the GPU's generation.");
  m.def("toolkit", &gpu::toolkit, "Name and version of the CUDA toolkit.");
  m.def("version", [] { return std::string(CRFASRNN_VERSION); }, "Version of the package this was compiled for.");
}
