// Forests of decision trees that judge rows of features.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace crfasrnn {

// Trees as tables over all their nodes. A row of features goes from a node to its child where the node's
// feature is not larger than its threshold, and to the node after the child where it is. Children come after
// their parent; a leaf is its own child.
struct Forest {
  std::span<const std::int32_t> feature;
  std::span<const float> threshold;
  std::span<const std::int32_t> child;
  std::span<const std::int32_t> root;  // the first node of each tree
  std::span<const float> share;        // [leaves, L], the leaves in the order of the nodes
  std::size_t n_labels;
};

// Whether no row of `width` features can leave the tables or walk for ever.
bool is_sound(const Forest& forest, std::size_t width);

// Write the mean share over the trees, [N, L], of rows [N, width] of a sound forest.
void judge(const Forest& forest, const float* rows, std::size_t n_rows, std::size_t width, float* found);

}  // namespace crfasrnn
