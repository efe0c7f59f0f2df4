"""Functions that torch.compile turns into kernels, and what happens where it cannot."""

import functools
import warnings
from collections.abc import Callable

import torch
from torch._dynamo.exc import TorchDynamoException

FORMS = 64  # how often one function may be compiled: for few sizes, in two dtypes, with and without rounding
UNCHECKED = {"assert_indirect_indexing": False}  # expert ids come from topk; checking them costs as much as the product


class Generated:
    """A function that is compiled when it is first called, as one graph.

    Where that fails it runs as it stands, with one warning: the same numbers, slower.
    """

    def __init__(self, function: Callable, **settings: object):
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FORMS)
        self.function, self.settings, self.failed = function, settings, False
        self.compiled = torch.compile(function, fullgraph=True, **settings)

    def __getstate__(self) -> tuple[Callable, dict[str, object]]:
        return self.function, self.settings

    def __setstate__(self, state: tuple[Callable, dict[str, object]]) -> None:
        """A copy compiles for itself: of a copied model, or it would compute with the weights of the original."""
        function, settings = state
        self.__init__(function, **settings)

    def __call__(self, *arguments: object) -> object:
        if not self.failed:
            try:
                return self.compiled(*arguments)
            except TorchDynamoException as error:
                self.failed = True
                reason = str(error).strip().partition("\n")[0]
                message = f"{self.function.__name__} cannot be compiled here and runs uncompiled, slower: {reason}"
                warnings.warn(message, stacklevel=2)
        return self.function(*arguments)


@functools.cache
def generated(function: Callable) -> Generated:
    """A function as kernels for a CPU."""
    return Generated(function, options=UNCHECKED)


def varying(tensor: torch.Tensor, *dims: int) -> torch.Tensor:
    """The tensor, with a mark for the compiler: these sizes may be others next time, and need no form of their own."""
    for dim in dims:
        if tensor.shape[dim] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
    return tensor


def on_cuda(**options: object) -> Callable[[Callable], Callable]:
    """Decorate a function: on CUDA it is compiled with these options, once per shape; elsewhere it just runs."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(first: torch.Tensor, *others: object) -> torch.Tensor | tuple[torch.Tensor, ...]:
            return (call.generated if first.is_cuda else function)(first, *others)

        call.generated, call.options = Generated(function, dynamic=False, options=options), options
        return call

    return decorate
