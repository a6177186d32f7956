// The Python face of the core: arrays in, arrays out, nothing else. Checks that users should read
// about are in lattice.py; what is checked here keeps native code safe from any caller.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "lattice.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Features = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

const char* sentence(crfasrnn::BuildError error) {
  switch (error) {
    case crfasrnn::BuildError::non_finite:
      return "features must be finite, got NaN or infinity; replace or mask them first";
    case crfasrnn::BuildError::out_of_range:
      return "features are too large for float32 lattice coordinates (about 2**20 at most); "
             "divide them by larger widths or rescale the image";
    case crfasrnn::BuildError::too_many_points:
      return "features have too many points: N * (d + 1) must stay below 2**31; split the image into tiles";
    case crfasrnn::BuildError::bad_shape:
      return "features must be [N, d] with 1 <= d <= 16";
  }
  return "the lattice could not be built";
}

std::unique_ptr<crfasrnn::Lattice> build(Features features) {
  std::unique_ptr<crfasrnn::Lattice> lattice;
  std::optional<crfasrnn::BuildError> error;
  const std::size_t n_dims = features.shape(1);
  if (n_dims > crfasrnn::max_dims) {
    error = crfasrnn::BuildError::bad_shape;
  } else {
    const nb::gil_scoped_release unlocked;
    error = crfasrnn::Lattice::build({features.data(), features.size()}, features.shape(0), static_cast<int>(n_dims),
                                     lattice);
  }
  if (error) throw nb::value_error(sentence(*error));
  return lattice;
}

void filter(const crfasrnn::Lattice& lattice, Values values, Output out, bool transpose) {
  if (values.shape(0) != lattice.n_points()) throw nb::value_error("values must have one row for every point");
  if (out.shape(0) != values.shape(0) || out.shape(1) != values.shape(1)) {
    throw nb::value_error("out must have the shape of values");
  }
  const float* first = values.data();
  float* target = out.data();
  if (values.size() != 0 && target < first + values.size() && first < target + out.size()) {
    throw nb::value_error("out must not overlap values");
  }
  const nb::gil_scoped_release unlocked;
  lattice.filter({first, values.size()}, {target, out.size()}, values.shape(1), transpose);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const char* const* name = crfasrnn::kernel_names(); *name != nullptr; ++name) names.emplace_back(*name);
  return names;
}

bool has_cuda() {
#if defined(CRFASRNN_CUDA)
  return true;
#else
  return false;
#endif
}

bool is_debug() {
#if defined(NDEBUG)
  return false;
#else
  return true;
#endif
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

}  // namespace

NB_MODULE(_lattice, m) {
  // Lattices may live in caches until the interpreter is gone; that is no leak.
  nb::set_leak_warnings(false);
  m.doc() = "The permutohedral lattice, compiled. Use napari_crfasrnn.lattice instead.";
  nb::class_<crfasrnn::Lattice>(m, "Lattice", "Vertices and weights of N points; built once, filters often.")
      .def(nb::new_(&build), "features"_a.noconvert(),
           "Build the lattice around features, float32 [N, d], already divided by the kernel widths.\n\n"
           "Raises ValueError for NaN, infinity, coordinates beyond 2**20 and too many points.")
      .def_prop_ro("n_points", &crfasrnn::Lattice::n_points, "N")
      .def_prop_ro("n_dims", &crfasrnn::Lattice::n_dims, "d")
      .def_prop_ro("n_vertices", &crfasrnn::Lattice::n_vertices, "M")
      .def_prop_ro("n_bytes", &crfasrnn::Lattice::n_bytes, "Memory held, in bytes.")
      .def("filter", &filter, "values"_a.noconvert(), "out"_a.noconvert(), nb::kw_only(), "transpose"_a = false,
           "Write slice(blur(splat(values))) to out; both float32 [N, V], C-contiguous, not overlapping.\n\n"
           "transpose applies the adjoint. The GIL is released; several threads may call at once.");

  m.def("set_n_threads", &crfasrnn::set_n_threads, "n_threads"_a,
        "Use at most this many threads per call; 0 restores the default. Results do not depend on it.");
  m.def("n_threads", &crfasrnn::n_threads, "How many threads a call uses at most.");
  m.def("instruction_sets", &instruction_sets, "Instruction sets that this processor can run, best first.");
  m.def("instruction_set", [] { return std::string(crfasrnn::kernels().name); }, "The instruction set in use.");
  m.def(
      "use_instruction_set",
      [](const std::string& name) {
        if (!crfasrnn::use_kernels(name.c_str())) {
          throw nb::value_error("name must be one of instruction_sets()");
        }
      },
      "name"_a, "Compute with this instruction set from now on (for tests and benchmarks).");
  m.def("version", [] { return std::string(CRFASRNN_VERSION); }, "Version of the package this was compiled for.");
  m.def("compiler", &compiler, "Name and version of the compiler of this extension.");
  m.def("has_cuda", &has_cuda, "Whether the CUDA backend is compiled in.");
  m.def("is_debug", &is_debug, "Whether internal assertions are compiled in.");
  m.def("release_memory", &crfasrnn::release_cached_memory,
        "Give the memory kept for reuse back to the system; returns the number of bytes.");
}
