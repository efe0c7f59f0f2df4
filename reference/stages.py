"""Named stages: the one place where activations can be seen, recorded or replaced.

Every intermediate that is worth comparing passes through `stage(name, tensor)`. With no observer it is the
tensor itself. `tools.dump_activations` records them, the parity tests pin the experts of one run in another,
and a researcher can patch an activation. docs/dump-names.md lists the names.
"""

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor

Observer = Callable[[str, Tensor], Tensor]
_observer: Observer | None = None


def stage(name: str, tensor: Tensor) -> Tensor:
    """Show `tensor` to the observer under `name`; what the observer returns is what the model goes on with."""
    return tensor if _observer is None else _observer(name, tensor)


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Let `observer(name, tensor)` see and replace every stage inside the block."""
    global _observer
    previous, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = previous
