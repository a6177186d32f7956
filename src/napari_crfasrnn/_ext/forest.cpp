#include "forest.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "parallel.hpp"

namespace crfasrnn {
namespace {

struct Node {
  std::int32_t feature;
  float threshold;
  std::int32_t child;
  std::int32_t leaf;
};

constexpr std::size_t lanes = 8;   // rows that walk side by side, so that their waits for memory overlap
constexpr std::size_t block = 32;  // rows that stay in the cache while all trees judge them
constexpr std::size_t grain = 512;

std::vector<Node> nodes_of(const Forest& forest) {
  std::vector<Node> nodes(forest.child.size());
  std::int32_t n_leaves = 0;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const bool is_leaf = forest.child[i] == static_cast<std::int32_t>(i);
    // Nothing is larger than infinity: a row that has arrived stays.
    nodes[i] = {is_leaf ? 0 : forest.feature[i],
                is_leaf ? std::numeric_limits<float>::infinity() : forest.threshold[i], forest.child[i],
                is_leaf ? n_leaves : -1};
    n_leaves += is_leaf;
  }
  return nodes;
}

// The nodes where `n` rows end, walking from `root`.
void walk(const Node* nodes, std::int32_t root, const float* rows, std::size_t n, std::size_t width,
          std::array<std::int32_t, lanes>& at) {
  at.fill(root);
  bool moved = true;
  while (moved) {
    moved = false;
    for (std::size_t i = 0; i < n; ++i) {
      const Node& node = nodes[at[i]];
      const std::int32_t next = node.child + (rows[i * width + node.feature] > node.threshold);
      moved |= next != at[i];
      at[i] = next;
    }
  }
}

}  // namespace

bool is_sound(const Forest& forest, std::size_t width) {
  const std::size_t n_nodes = forest.child.size();
  if (width == 0 || forest.root.empty() || forest.feature.size() != n_nodes || forest.threshold.size() != n_nodes ||
      n_nodes > std::size_t{1} << 30) {
    return false;
  }
  std::size_t n_leaves = 0;
  for (std::size_t i = 0; i < n_nodes; ++i) {
    const auto feature = static_cast<std::size_t>(forest.feature[i]), child = static_cast<std::size_t>(forest.child[i]);
    if (forest.feature[i] < 0 || feature >= width || forest.child[i] < 0) return false;
    if (child == i) {
      ++n_leaves;
    } else if (child < i || child + 1 >= n_nodes) {
      return false;
    }
  }
  return n_leaves * forest.n_labels == forest.share.size() &&
         std::all_of(forest.root.begin(), forest.root.end(), [n_nodes](std::int32_t root) {
           return root >= 0 && static_cast<std::size_t>(root) < n_nodes;
         });
}

void judge(const Forest& forest, const float* rows, std::size_t n_rows, std::size_t width, float* found) {
  const std::vector<Node> nodes = nodes_of(forest);
  const std::size_t n_labels = forest.n_labels;
  const float n_trees = static_cast<float>(forest.root.size());
  parallel_for(n_rows, grain, [&](std::size_t begin, std::size_t end) {
    std::fill(found + begin * n_labels, found + end * n_labels, 0.0f);
    for (std::size_t first = begin; first < end; first += block) {
      const std::size_t last = std::min(first + block, end);
      for (const std::int32_t root : forest.root) {
        for (std::size_t row = first; row < last; row += lanes) {
          const std::size_t n = std::min(lanes, last - row);
          std::array<std::int32_t, lanes> at;
          if (n == lanes) {
            walk(nodes.data(), root, rows + row * width, lanes, width, at);
          } else {
            walk(nodes.data(), root, rows + row * width, n, width, at);
          }
          for (std::size_t i = 0; i < n; ++i) {
            const float* share = forest.share.data() + static_cast<std::size_t>(nodes[at[i]].leaf) * n_labels;
            float* sum = found + (row + i) * n_labels;
            for (std::size_t label = 0; label < n_labels; ++label) sum[label] += share[label];
          }
        }
      }
    }
    for (std::size_t i = begin * n_labels; i < end * n_labels; ++i) found[i] /= n_trees;
  });
}

}  // namespace crfasrnn
