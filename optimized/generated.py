"""Single functions that torch.compile turns into kernels, for use inside custom operators."""

from collections.abc import Callable

import torch

_GENERATED: dict[Callable, Callable] = {}
OPTIONS = {
    "assert_indirect_indexing": False,  # expert ids come from topk; checking each again costs as much as the product
}


def generated(function: Callable) -> Callable:
    """`function` compiled, once per process and kind of argument."""
    if function not in _GENERATED:
        _GENERATED[function] = torch.compile(function, fullgraph=True, options=OPTIONS)
    return _GENERATED[function]
