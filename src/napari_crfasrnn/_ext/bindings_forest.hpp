#pragma once

#include <nanobind/nanobind.h>

// Add what there is for forests to the module.
void bind_forest(nanobind::module_& m);
