"""How dimensions go through operators: which factors make up each dimension of each value.

A dimension is a product of factors, outermost first: batch · heads is one dimension of two factors. `follow` gives
every dimension of a value a factor of its own and carries these through the nodes that come after it:

    view, reshape, flatten       factors are dealt out anew; one is split where a new dimension ends within it
    permute, transpose           dimensions change places
    elementwise ops              operands are aligned and broadcast
    linear, matmul, einsum       what is summed over vanishes, and new features have a factor of their own
    softmax, cumsum, roll        a dimension stays, but its indices are mixed

Two questions are answered by it. Does each index of a dimension go through alone, so that several values can be put
side by side along it (`goes_alone`)? And which part of an attention product's dimensions counts heads
(`jetgraph.structure.heads`)? An operator that has no entry in `LAYOUTS` mixes everything.
"""

from jetgraph.structure.dimensions.combining import einsum_labels
from jetgraph.structure.dimensions.factors import Factor, Factors, Layout, Size, leaves, size_read
from jetgraph.structure.dimensions.following import Dimensions
from jetgraph.structure.dimensions.layouts import LAYOUTS, follow, follow_stretches, go_abreast, goes_alone

__all__ = [
    "LAYOUTS",
    "Dimensions",
    "Factor",
    "Factors",
    "Layout",
    "Size",
    "einsum_labels",
    "follow",
    "follow_stretches",
    "go_abreast",
    "goes_alone",
    "leaves",
    "size_read",
]
