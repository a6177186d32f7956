"""A forest of decision trees as plain arrays, so that a file can hold it without a pickle.

The trees are grown by scikit-learn. Here they are tables: a pixel goes from node to node and takes the class
shares of the leaf where it ends. That walk is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_crfasrnn._ext import _lattice
from napari_crfasrnn.config import ForestConfig
from napari_crfasrnn.experts.features import column_index


class Forest(nn.Module):
    """Trees over pixel features.

    Parameters
    ----------
    config
        Which features, how many trees, nodes and leaves.
    n_labels
        Number of classes L.

    Attributes
    ----------
    feature, threshold, child : Tensor
        Of each node [nodes]: which feature is compared with what, and the node to go to where it is not
        larger; where it is, the next one. A leaf leads to itself and its threshold is never exceeded.
    root : Tensor
        [trees] the first node of each tree.
    share : Tensor
        [leaves, L] how much of each class ended in each leaf, in the order of the nodes.
    """

    feature: Tensor
    threshold: Tensor
    child: Tensor
    root: Tensor
    share: Tensor

    def __init__(self, config: ForestConfig, n_labels: int) -> None:
        super().__init__()
        self.config = config
        n_nodes = config.n_nodes
        self.register_buffer("feature", torch.zeros(n_nodes, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(n_nodes))
        self.register_buffer("child", torch.zeros(n_nodes, dtype=torch.int32))
        self.register_buffer("root", torch.zeros(config.n_trees, dtype=torch.int32))
        self.register_buffer("share", torch.zeros(config.n_leaves, n_labels))

    @classmethod
    def planted(cls, grown: Any, groups: Sequence[int], n_labels: int) -> Forest:
        """Return the trees of a fitted scikit-learn forest, random or extremely randomised.

        Parameters
        ----------
        grown
            Fitted on features of type float32 and targets that are label values.
        groups
            Strides of the feature groups that it was fitted on, in order.
        n_labels
            Number of classes L; those that it never saw get no share.
        """
        tables = [_table(estimator.tree_, grown.classes_, n_labels) for estimator in grown.estimators_]
        sizes = [len(table["feature"]) for table in tables]
        roots = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
        share = np.concatenate([table["share"] for table in tables])
        depth = max(estimator.tree_.max_depth for estimator in grown.estimators_)
        config = ForestConfig(
            groups=tuple(groups), n_trees=len(tables), n_nodes=sum(sizes), n_leaves=len(share), depth=depth
        )
        forest = cls(config, n_labels)
        forest.root.copy_(torch.from_numpy(roots))
        forest.share.copy_(torch.from_numpy(share))
        for name in ("feature", "threshold"):
            getattr(forest, name).copy_(torch.from_numpy(np.concatenate([table[name] for table in tables])))
        children = [table["child"] + start for table, start in zip(tables, roots, strict=True)]
        forest.child.copy_(torch.from_numpy(np.concatenate(children)))
        return forest

    @torch.no_grad()
    def forward(self, rows: Tensor) -> Tensor:  # [N, d] → [N, L]
        """Return the mean share of each class over the trees.

        Parameters
        ----------
        rows
            Features of all groups, or of the first of them.
        """
        feature, threshold, child, root, share = (
            table.cpu().numpy() for table in (self.feature, self.threshold, self.child, self.root, self.share)
        )
        values = rows.detach().to("cpu", torch.float32).contiguous().numpy()
        found = np.empty((len(values), share.shape[1]), np.float32)
        place = column_index(self.config.groups)
        if feature.min() < 0 or feature.max() >= len(place):
            raise ValueError("the tables of the forest must hold trees over the features of its groups")
        _lattice.judge(
            values, found, feature=place[feature], threshold=threshold, child=child, root=root, share=share
        )
        return torch.from_numpy(found).to(rows.device)


def _table(tree: Any, classes: NDArray[np.integer], n_labels: int) -> dict[str, NDArray[Any]]:
    """Return a tree with its nodes in breadth-first order, so that siblings are neighbours."""
    left, right = tree.children_left, tree.children_right
    order = [np.zeros(1, np.int64)]
    while True:
        inner = order[-1][left[order[-1]] >= 0]
        if not len(inner):
            break
        order.append(np.stack([left[inner], right[inner]], axis=1).ravel())
    nodes = np.concatenate(order)
    place = np.empty(len(nodes), np.int32)
    place[nodes] = np.arange(len(nodes), dtype=np.int32)
    is_leaf = left[nodes] < 0
    # Features are float32: rounding a threshold down to the next float32 changes no comparison.
    exact = tree.threshold[nodes]
    threshold = exact.astype(np.float32)
    too_high = threshold > exact
    threshold[too_high] = np.nextafter(threshold[too_high], np.float32(-np.inf))
    threshold[is_leaf] = np.finfo(np.float32).max
    counts = tree.value[nodes[is_leaf], 0]
    share = np.zeros((len(counts), n_labels), np.float32)
    share[:, classes] = counts / counts.sum(axis=1, keepdims=True)
    return {
        "feature": np.where(is_leaf, 0, tree.feature[nodes]).astype(np.int32),
        "threshold": threshold,
        "child": np.where(is_leaf, np.arange(len(nodes)), place[left[nodes]]).astype(np.int32),
        "share": share,
    }
