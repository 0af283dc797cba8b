"""Tree ensembles as plain arrays: the mean of the trees' answers, and which feature brought it about.

Nodes of all trees stand one after the other, each tree in depth-first order: a node's left child follows it.
A sample goes left where its feature is at most the threshold; NaN goes where the node says. Both walks write
that out: as a function of its own it takes half as long again.
"""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

BLOCK = 512  # rows that stay in the cache while all trees pass


@jit
def predicted(roots, feature, threshold, right, nan_left, value, samples):
    """Return float64 [n]: the mean over trees of the values of the leaves that samples end in.

    ``roots`` int32 [t]; per node ``feature`` int16 (-1 a leaf), ``threshold`` float32, ``right`` int32, the
    right child, ``nan_left`` uint8, ``value`` float64. ``samples`` float32 [n, f]. Trees are summed in their
    order, so that sums are those of scikit-learn. `ks4diff.io.models` has made sure that no walk leaves the
    arrays.
    """
    n = len(samples)
    out = np.zeros(n)
    for first in range(0, n, BLOCK):
        for root in roots:
            for k in range(first, min(first + BLOCK, n)):
                node = root
                while feature[node] >= 0:
                    x = samples[k, feature[node]]
                    left = nan_left[node] != 0 if np.isnan(x) else x <= threshold[node]
                    node = node + 1 if left else right[node]
                out[k] += value[node]
    return out / len(roots)


@jit
def contributions(roots, feature, threshold, right, nan_left, value, samples):
    """Return float64 [n, f]: how much each feature moved the mean answer from the roots' mean.

    The steps of value along each path, given to the feature that was asked there (Saabas): with the roots'
    mean they add up to `predicted`. The arrays are those of `predicted`.
    """
    n = len(samples)
    out = np.zeros(samples.shape)
    for first in range(0, n, BLOCK):
        for root in roots:
            for k in range(first, min(first + BLOCK, n)):
                node = root
                while feature[node] >= 0:
                    x = samples[k, feature[node]]
                    left = nan_left[node] != 0 if np.isnan(x) else x <= threshold[node]
                    child = node + 1 if left else right[node]
                    out[k, feature[node]] += value[child] - value[node]
                    node = child
    return out / len(roots)
