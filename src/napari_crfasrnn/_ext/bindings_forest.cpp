// The Python face of forests.
#include "bindings_forest.hpp"

#include <nanobind/ndarray.h>

#include "forest.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Indices = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Thresholds = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using TableOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void judge(Table rows, TableOut found, Indices feature, Thresholds threshold, Indices child, Indices root,
           Table share) {
  const crfasrnn::Forest forest{{feature.data(), feature.size()}, {threshold.data(), threshold.size()},
                                {child.data(), child.size()},     {root.data(), root.size()},
                                {share.data(), share.size()},     share.shape(1)};
  if (found.shape(0) != rows.shape(0) || found.shape(1) != share.shape(1)) {
    throw nb::value_error("found must be [N, L]");
  }
  if (!crfasrnn::is_sound(forest, rows.shape(1))) {
    throw nb::value_error("the tables of the forest must hold trees over the features of rows");
  }
  const nb::gil_scoped_release unlocked;
  crfasrnn::judge(forest, rows.data(), rows.shape(0), rows.shape(1), found.data());
}

}  // namespace

void bind_forest(nb::module_& m) {
  m.def("judge", &judge, "rows"_a.noconvert(), "found"_a.noconvert(), nb::kw_only(), "feature"_a.noconvert(),
        "threshold"_a.noconvert(), "child"_a.noconvert(), "root"_a.noconvert(), "share"_a.noconvert(),
        "Write the mean over trees of the shares [leaves, L] where rows, float32 [N, d], end to found, float32 [N, L].\n\n"
        "A row goes from a node to its child, or where its feature is above the threshold to the node after the\n"
        "child; a leaf is its own child. Raises ValueError for tables that are no trees.");
}
