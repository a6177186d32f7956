// The Python face of the core: arrays in, arrays out, nothing else. Checks that users should read
// about are in lattice.py; what is checked here keeps native code safe from any caller.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings_forest.hpp"
#include "image_points.hpp"
#include "kernels.hpp"
#include "lattice.hpp"
#include "mean_field.hpp"
#include "mean_field_training.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "pixel_order.hpp"
#include "point_source.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Features = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

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

using Hook = nb::typed<nb::callable, void(int, int)>;

// A Python function that native code calls while the GIL is released; what it raises goes through.
std::function<void(int, int)> hook_of(const std::optional<Hook>& function) {
  if (!function) return {};
  // By reference: the function outlives the run, and counting references would need the GIL.
  return [&function](int done, int total) {
    const crfasrnn::Pauses none({});  // what it computes itself is not to ask it again
    const nb::gil_scoped_acquire locked;
    (*function)(done, total);
  };
}

// Of work that does not know how far it is.
crfasrnn::Pauses pauses_for(const crfasrnn::OnStep& hook) {
  if (!hook) return crfasrnn::Pauses({});
  return crfasrnn::Pauses([&hook] { hook(0, 1); });
}

// Throws what the error says in a sentence.
std::unique_ptr<crfasrnn::Lattice> build_from(const crfasrnn::PointSource& points, const crfasrnn::OnStep& on_step = {}) {
  std::unique_ptr<crfasrnn::Lattice> lattice;
  std::optional<crfasrnn::BuildError> error;
  {
    const nb::gil_scoped_release unlocked;
    error = crfasrnn::Lattice::build(points, lattice, on_step);
  }
  if (error) throw nb::value_error(sentence(*error));
  return lattice;
}

std::unique_ptr<crfasrnn::Lattice> build(Features features) {
  if (features.shape(1) > crfasrnn::max_dims) throw nb::value_error(sentence(crfasrnn::BuildError::bad_shape));
  return build_from(crfasrnn::FeatureArray({features.data(), features.size()}, features.shape(0),
                                           static_cast<int>(features.shape(1))));
}

using Result = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

// A new array [rows, columns] in reused memory, which Python gives back when it lets go of it.
Result new_array(std::size_t rows, std::size_t columns) {
  auto owned = std::make_unique<crfasrnn::Buffer<float>>(rows * columns);
  float* data = owned->data();
  nb::capsule owner(owned.get(), [](void* p) noexcept { delete static_cast<crfasrnn::Buffer<float>*>(p); });
  static_cast<void>(owned.release());
  return Result(data, {rows, columns}, owner);
}

Result filter(const crfasrnn::Lattice& lattice, Values values, bool transpose) {
  if (values.shape(0) != lattice.n_points()) throw nb::value_error("values must have one row for every point");
  Result out = new_array(values.shape(0), values.shape(1));
  float* target = out.data();
  const nb::gil_scoped_release unlocked;
  lattice.filter({values.data(), values.size()}, {target, values.size()}, values.shape(1), transpose);
  return out;
}

using Factors = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Order = nb::ndarray<const std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

std::span<const float> factors_for(const std::optional<Factors>& factors, const crfasrnn::Lattice& lattice) {
  if (!factors) return {};
  if (factors->shape(0) != lattice.n_points()) throw nb::value_error("factors must be [N]");
  return {factors->data(), factors->size()};
}

using SharedLattice = std::shared_ptr<crfasrnn::Lattice>;

template <class Field>
std::unique_ptr<Field> mean_field(SharedLattice spatial, SharedLattice bilateral,
                                  std::optional<Factors> spatial_before, std::optional<Factors> spatial_after,
                                  std::optional<Factors> bilateral_before, std::optional<Factors> bilateral_after,
                                  std::optional<Order> pixel_of, const std::vector<std::size_t>& space, bool averages,
                                  std::optional<Hook> on_step) {
  if (spatial->n_points() != bilateral->n_points()) {
    throw nb::value_error("spatial and bilateral must be lattices of the same points");
  }
  if (averages && (spatial_before || bilateral_before || !spatial_after || !bilateral_after)) {
    throw nb::value_error("kernels that average have factors after the filter, and none before");
  }
  if (pixel_of) {
    std::size_t product = space.empty() ? 0 : 1;
    for (const std::size_t size : space) product *= size;
    if (pixel_of->size() != spatial->n_points() || product != spatial->n_points()) {
      throw nb::value_error("pixel_of must be [N], and space must multiply to N");
    }
  }
  const crfasrnn::MeanField::Kernel first{spatial, factors_for(spatial_before, *spatial),
                                          factors_for(spatial_after, *spatial), averages};
  const crfasrnn::MeanField::Kernel second{bilateral, factors_for(bilateral_before, *bilateral),
                                           factors_for(bilateral_after, *bilateral), averages};
  const crfasrnn::OnStep hook = hook_of(on_step);
  {
    const nb::gil_scoped_release unlocked;
    const crfasrnn::Pauses pauses = pauses_for(hook);
    std::optional<crfasrnn::PixelOrder> order;
    if (pixel_of) {
      order = crfasrnn::PixelOrder::of({pixel_of->data(), pixel_of->size()}, space);
    } else {
      order.emplace(spatial->n_points());
    }
    if (order) return std::make_unique<Field>(first, second, std::move(*order));
  }
  throw nb::value_error("pixel_of must be a permutation of 0..N-1 that leaves pixels in their squares");
}

crfasrnn::MeanField::Weights weights_of(const Matrix& spatial, const Matrix& bilateral, float unary_scale,
                                        float output_scale, std::size_t n_labels) {
  if (n_labels < 1 || n_labels > crfasrnn::max_width) throw nb::value_error("unary must have 1 to 64 labels");
  for (const Matrix* matrix : {&spatial, &bilateral}) {
    if (matrix->shape(0) != n_labels || matrix->shape(1) != n_labels) throw nb::value_error("matrices must be [L, L]");
  }
  return {{spatial.data(), spatial.size()}, {bilateral.data(), bilateral.size()}, unary_scale, output_scale};
}

Result run(const crfasrnn::MeanField& field, Values unary, Matrix spatial, Matrix bilateral, float unary_scale,
           float output_scale, int n_iterations, std::optional<Hook> on_iteration, bool in_16_bits) {
  const std::size_t n_labels = unary.shape(0);
  crfasrnn::MeanField::Weights weights = weights_of(spatial, bilateral, unary_scale, output_scale, n_labels);
  if (in_16_bits) weights.storage = crfasrnn::MarginalStorage::shares;
  if (unary.shape(1) != field.n_points()) throw nb::value_error("unary must be [L, N]");
  if (n_iterations < 1) throw nb::value_error("n_iterations must be at least 1");
  Result out = new_array(n_labels, unary.shape(1));
  float* target = out.data();
  const crfasrnn::AfterIteration hook = hook_of(on_iteration);
  bool finite;
  {
    const nb::gil_scoped_release unlocked;
    finite = field.run({unary.data(), unary.size()}, static_cast<int>(n_labels), weights, n_iterations,
                       {target, unary.size()}, hook);
  }
  if (!finite) throw nb::value_error("unary must be finite, got NaN or infinity");
  return out;
}

std::pair<Result, Result> forward(const crfasrnn::MeanFieldTraining& field, Values unary, Matrix spatial,
                                  Matrix bilateral, float unary_scale, float output_scale, int n_iterations,
                                  bool with_vertices, std::optional<Hook> on_iteration) {
  const std::size_t n_labels = unary.shape(0);
  const crfasrnn::MeanField::Weights weights = weights_of(spatial, bilateral, unary_scale, output_scale, n_labels);
  if (unary.shape(1) != field.n_points()) throw nb::value_error("unary must be [L, N]");
  if (n_iterations < 1) throw nb::value_error("n_iterations must be at least 1");
  const std::size_t size = field.trace_size(static_cast<int>(n_labels), with_vertices);
  Result out = new_array(n_labels, unary.shape(1));
  Result trace = new_array(static_cast<std::size_t>(n_iterations), size);
  const std::span<float> out_span{out.data(), unary.size()};
  const std::span<float> trace_span{trace.data(), static_cast<std::size_t>(n_iterations) * size};
  const crfasrnn::AfterIteration hook = hook_of(on_iteration);
  bool finite;
  {
    const nb::gil_scoped_release unlocked;
    finite = field.forward({unary.data(), unary.size()}, static_cast<int>(n_labels), weights, n_iterations, out_span,
                           trace_span, with_vertices, hook);
  }
  if (!finite) throw nb::value_error("unary must be finite, got NaN or infinity");
  return {out, trace};
}

using MaybeResult = std::optional<Result>;

std::tuple<MaybeResult, MaybeResult, MaybeResult> backward(const crfasrnn::MeanFieldTraining& field, Values trace,
                                                           Values gradient, Matrix spatial, Matrix bilateral,
                                                           float unary_scale, float output_scale, bool for_unary,
                                                           bool for_spatial, bool for_bilateral) {
  const std::size_t n_labels = gradient.shape(0);
  const crfasrnn::MeanField::Weights weights = weights_of(spatial, bilateral, unary_scale, output_scale, n_labels);
  if (gradient.shape(1) != field.n_points()) throw nb::value_error("gradient must be [L, N]");
  const bool with_vertices = trace.shape(1) == field.trace_size(static_cast<int>(n_labels), true);
  if (!with_vertices && (for_spatial || for_bilateral ||
                         trace.shape(1) != field.trace_size(static_cast<int>(n_labels), false))) {
    throw nb::value_error("trace must be what forward returned, with vertices for gradients of matrices");
  }
  crfasrnn::MeanFieldTraining::Gradients wanted;
  const auto wish = [](bool wish_for_it, std::size_t rows, std::size_t columns, std::span<float>& target) {
    MaybeResult array;
    if (wish_for_it) {
      array = new_array(rows, columns);
      target = {array->data(), rows * columns};
    }
    return array;
  };
  MaybeResult unary_array = wish(for_unary, n_labels, gradient.shape(1), wanted.unary);
  MaybeResult spatial_array = wish(for_spatial, n_labels, n_labels, wanted.spatial);
  MaybeResult bilateral_array = wish(for_bilateral, n_labels, n_labels, wanted.bilateral);
  {
    const nb::gil_scoped_release unlocked;
    field.backward({trace.data(), trace.size()}, with_vertices, static_cast<int>(n_labels), weights,
                   static_cast<int>(trace.shape(0)), {gradient.data(), gradient.size()}, wanted);
  }
  return {unary_array, spatial_array, bilateral_array};
}

double dot(Values a, Values b) {
  if (a.shape(0) != b.shape(0) || a.shape(1) != b.shape(1)) throw nb::value_error("a and b must have the same shape");
  const nb::gil_scoped_release unlocked;
  return crfasrnn::dot({a.data(), a.size()}, {b.data(), b.size()});
}

using Image = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OrderOut = nb::ndarray<std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check_space(const Image& image, const std::vector<std::size_t>& space, std::size_t n_points) {
  std::size_t product = space.empty() ? 0 : 1;
  for (const std::size_t size : space) product *= size;
  if (product != image.shape(1) || product != n_points) throw nb::value_error("space must multiply to N");
}

void order_pixels(Image image, const std::vector<std::size_t>& space, float colour_step, OrderOut pixel_of,
                  std::optional<Hook> on_step) {
  check_space(image, space, pixel_of.shape(0));
  const crfasrnn::OnStep hook = hook_of(on_step);
  const nb::gil_scoped_release unlocked;
  const crfasrnn::Pauses pauses = pauses_for(hook);
  crfasrnn::order_pixels({image.data(), image.size()}, space, colour_step, {pixel_of.data(), pixel_of.size()});
}

std::unique_ptr<crfasrnn::Lattice> build_of_pixels(Image image, const std::vector<std::size_t>& space, Order pixel_of,
                                                   float position_width, float colour_width,
                                                   std::optional<Hook> on_step) {
  check_space(image, space, pixel_of.shape(0));
  if (space.size() + image.shape(0) > crfasrnn::max_dims) {
    throw nb::value_error(sentence(crfasrnn::BuildError::bad_shape));
  }
  const std::span<const std::uint32_t> order{pixel_of.data(), pixel_of.size()};
  if (!order.empty() && *std::max_element(order.begin(), order.end()) >= order.size()) {
    throw nb::value_error("pixel_of must be below N");
  }
  return build_from(
      crfasrnn::PixelPoints({image.data(), image.size()}, space, order, position_width, colour_width),
      hook_of(on_step));
}

Result row_sums(const crfasrnn::Lattice& lattice, std::optional<Hook> on_step) {
  Result out = new_array(lattice.n_points(), 1);
  float* target = out.data();
  const crfasrnn::OnStep hook = hook_of(on_step);
  const nb::gil_scoped_release unlocked;
  const crfasrnn::Pauses pauses = pauses_for(hook);
  lattice.row_sums({target, lattice.n_points()});
  return out;
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
      .def_static("of_pixels", &build_of_pixels, "image"_a.noconvert(), "space"_a, nb::kw_only(),
                  "pixel_of"_a.noconvert(), "position_width"_a, "colour_width"_a, "on_step"_a = nb::none(),
                  "Build the lattice around the pixels of image, float32 [C, N], in the order of pixel_of.\n\n"
                  "Features are positions, last axis first, and then channels, each over its width.\n"
                  "on_step(done, total) is called again and again; what it raises ends the build.")
      .def_prop_ro("n_points", &crfasrnn::Lattice::n_points, "N")
      .def_prop_ro("n_dims", &crfasrnn::Lattice::n_dims, "d")
      .def_prop_ro("n_vertices", &crfasrnn::Lattice::n_vertices, "M")
      .def_prop_ro("n_bytes", &crfasrnn::Lattice::n_bytes, "Memory held, in bytes.")
      .def("row_sums", &row_sums, nb::kw_only(), "on_step"_a = nb::none(),
           "Return filter(ones), float32 [N, 1].\n\n"
           "on_step(0, 1) is called again and again; what it raises ends that.")
      .def("filter", &filter, "values"_a.noconvert(), nb::kw_only(), "transpose"_a = false,
           "Return slice(blur(splat(values))) for values float32 [N, V], C-contiguous.\n\n"
           "transpose applies the adjoint. The GIL is released; several threads may call at once.");

  nb::class_<crfasrnn::MeanField>(m, "MeanField", "Mean-field inference with two kernels, without gradients.")
      .def(nb::new_(&mean_field<crfasrnn::MeanField>), "spatial"_a, "bilateral"_a, nb::kw_only(), "spatial_before"_a.noconvert() = nb::none(),
           "spatial_after"_a.noconvert() = nb::none(), "bilateral_before"_a.noconvert() = nb::none(),
           "bilateral_after"_a.noconvert() = nb::none(), "pixel_of"_a.noconvert() = nb::none(), "space"_a = std::vector<std::size_t>{}, "averages"_a = false,
           "on_step"_a = nb::none(),
           "Join two lattices of the same N points.\n\n"
           "The factors, float32 [N], multiply what goes into and comes out of a filter. pixel_of, uint32 [N],\n"
           "tells where each point lies in the planes of run: what order_pixels gave for an image of that space.\n"
           "averages tells that the factors make every row of both kernels sum to 1. on_step(0, 1) is called\n"
           "again and again; what it raises ends that.")
      .def_prop_ro("n_points", &crfasrnn::MeanField::n_points, "N")
      .def("run", &run, "unary"_a.noconvert(), nb::kw_only(), "spatial"_a.noconvert(),
           "bilateral"_a.noconvert(), "unary_scale"_a, "output_scale"_a, "n_iterations"_a,
           "on_iteration"_a = nb::none(), "in_16_bits"_a = false,
           "Return the refined logits [L, N] of unary [L, N], float32, L <= 64.\n\n"
           "The matrices [L, L] map a kernel's message to what is subtracted from the logits. The GIL is\n"
           "released, and taken for on_iteration(done, total) after each iteration, and again and again during a\n"
           "long one; what that raises ends the run. in_16_bits stores marginals so, of more than two labels and kernels that average. Raises\n"
           "ValueError for NaN or infinity in unary.");

  nb::class_<crfasrnn::MeanFieldTraining>(m, "MeanFieldTraining", "The mean field with a backward run.")
      .def(nb::new_(&mean_field<crfasrnn::MeanFieldTraining>), "spatial"_a, "bilateral"_a, nb::kw_only(),
           "spatial_before"_a.noconvert() = nb::none(), "spatial_after"_a.noconvert() = nb::none(),
           "bilateral_before"_a.noconvert() = nb::none(), "bilateral_after"_a.noconvert() = nb::none(),
           "pixel_of"_a.noconvert() = nb::none(), "space"_a = std::vector<std::size_t>{}, "averages"_a = false,
           "on_step"_a = nb::none(), "As MeanField.")
      .def_prop_ro("n_points", &crfasrnn::MeanFieldTraining::n_points, "N")
      .def("forward", &forward, "unary"_a.noconvert(), nb::kw_only(), "spatial"_a.noconvert(),
           "bilateral"_a.noconvert(), "unary_scale"_a, "output_scale"_a, "n_iterations"_a, "with_vertices"_a,
           "on_iteration"_a = nb::none(),
           "Return what MeanField.run returns, and a trace [n_iterations, floats] for backward.\n\n"
           "Only a trace with vertices serves gradients of the matrices.")
      .def("backward", &backward, "trace"_a.noconvert(), "gradient"_a.noconvert(), nb::kw_only(),
           "spatial"_a.noconvert(), "bilateral"_a.noconvert(), "unary_scale"_a, "output_scale"_a, "for_unary"_a,
           "for_spatial"_a, "for_bilateral"_a,
           "Return the gradients of unary [L, N] and both matrices [L, L], those that are wanted.\n\n"
           "gradient [L, N] is that of what forward returned with the same matrices and scales.");
  m.def("dot", &dot, "a"_a.noconvert(), "b"_a.noconvert(),
        "Return the sum of a * b, float32 [R, C], in an order that does not depend on the number of threads.");

  m.def("order_pixels", &order_pixels, "image"_a.noconvert(), "space"_a, nb::kw_only(), "colour_step"_a,
        "pixel_of"_a.noconvert(), "on_step"_a = nb::none(),
        "Write an order of the pixels of image, float32 [C, N], that suits the cache to pixel_of, uint32 [N].\n\n"
        "on_step(0, 1) is called again and again; what it raises ends that.");

  bind_forest(m);

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
