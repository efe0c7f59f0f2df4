"""A whole decode step as one CUDA graph: at a few microseconds a launch, launching costs more than most kernels.

    step = DecodeGraph(model.compiled)
    logits = step(hidden, start, num_padding, layers, ...)      # as model.compute, one token per row

Recorded by hand, not by `torch.compile(mode="reduce-overhead")`: the cache's tensors are written in place and are
handed in anew for each group of rows, which makes that mode copy them or quietly run without graphs. Here the cache is
addressed where it lies, and what cannot be recorded is an error. A step writes its tokens behind `start` and advances
nothing, so running it to warm up and once more to record changes nothing.

One graph per number of rows and place in memory. It knows addresses alone: when the cache grows or another one is used,
the graphs of the old one are dropped and the step is recorded again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from reference.errors import UsageError

# B rows   C hidden_size   O vocab_size   S slots of the cache   R kv_lora_rank   P qk_rope_head_dim

WARM_UPS = 3  # compiling, tuning, and the allocations of a first run belong to none of the recorded launches


class DecodeGraph:
    """`compute` of a language model for one token per row, replayed."""

    def __init__(self, compute: Callable[..., Tensor]):
        self.compute = compute
        self.recorded: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def __call__(
        self, hidden: Tensor, start: Tensor, num_padding: Tensor, layers: list[Tensor], *settings: object
    ) -> Tensor:
        """hidden (B, 1, C), start (B,), num_padding (B,) and the cache's layers, each (B, S, R+P), to logits (B, 1, O).

        settings: what else `compute` takes, the same on every call with this cache. Raises UsageError if the step
        cannot be recorded.
        """
        cache = tuple(layer.untyped_storage().data_ptr() for layer in layers)  # the same for any rows of it
        key = (cache, layers[0].data_ptr(), hidden.shape, hidden.dtype, settings)
        if key not in self.recorded:
            self.forget_other_caches(cache)
            self.recorded[key] = self.record(hidden, start, num_padding, layers, settings)
        graph, inputs, logits = self.recorded[key]
        for buffer, given in zip(inputs, (hidden, start, num_padding), strict=True):
            buffer.copy_(given)
        graph.replay()
        return logits.clone()  # the next replay writes over them

    def forget_other_caches(self, cache: tuple) -> None:
        """The memory of another cache may be gone: keep the graphs of this one alone."""
        self.recorded = {key: entry for key, entry in self.recorded.items() if key[0] == cache}

    def record(
        self, hidden: Tensor, start: Tensor, num_padding: Tensor, layers: list[Tensor], settings: tuple
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        """The graph, its inputs and its output. Recording computes nothing; the first replay does."""
        inputs = [hidden.clone(), start.clone(), num_padding.clone()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.compute(*inputs, layers, *settings)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                logits = self.compute(*inputs, layers, *settings)
        except RuntimeError as error:
            raise UsageError(
                f"the decode step cannot be recorded as a CUDA graph: {error}. Something in it waits for the device. "
                "Run without --compile."
            ) from error
        return graph, inputs, logits
