"""Which form runs where: the one place that decides, by what the machine can do, never by its name.

What each choice for a CPU rests on is measured by `python -m tools.bench_forms`: docs/performance.md.
"""

import os
import shutil
from typing import TYPE_CHECKING

from reference.errors import UsageError

if TYPE_CHECKING:
    import torch

ATTENTIONS = ("auto", "flex", "products")
DEVICES = ("cpu", "cuda")
OLDEST_TORCH = (2, 11)

# The most assignments per expert with which, on a CPU, each reads its expert by itself. Dense weights are bound by
# memory, so reading one twice is a loss; packed ones by arithmetic, until unpacking them for all pays.
GATHER_DENSE, GATHER_INT4 = 1, 8
GATHERED_ON_CUDA = 64  # assignments up to which each one reads its expert by itself; beyond, they are sorted


def check_version() -> None:
    """Raise UsageError where PyTorch is older than what the optimized model is written for."""
    import torch

    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if found < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise UsageError(
            f"the optimized model needs PyTorch {oldest} or newer, and this is {torch.__version__}. Install a newer "
            "one, or use python -m reference.generate."
        )


def check_device(device: "torch.device | str") -> None:
    """Raise UsageError where the optimized model has no form for this device, or PyTorch has no such device here."""
    import torch

    kind = str(device).partition(":")[0]
    if kind not in DEVICES:
        raise UsageError(
            f"the optimized model runs on {' or '.join(DEVICES)}, not on {device}. Use the reference for other devices."
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device}: PyTorch finds no CUDA GPU here. Use cpu, or check nvidia-smi.")


def has_compiler(device: "torch.device") -> bool:
    """Whether torch.compile can generate code for this device: a C++ compiler for a CPU, Triton for CUDA."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return has_triton()
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


def compiles_by_default(device: "torch.device") -> bool:
    """A short command on a CPU is over before a compiler is; on CUDA launches cost more than kernels."""
    return device.type == "cuda" and has_compiler(device)


def prefill_attention(device: "torch.device", is_compiled: bool) -> str:
    """FlexAttention on CUDA where it is compiled; on a CPU products in blocks beat it by more than 1.2 times."""
    return "flex" if is_compiled and device.type == "cuda" else "products"


def decode_attention(device: "torch.device") -> str:
    """One query reads the latents once. On a CPU two products with a softmax between them read them fastest by far."""
    return "products" if device.type == "cpu" else "flex"


def int4_layout(num_outputs: int, device: "torch.device", may_generate: bool) -> str:
    """How weights with this many outputs lie in memory: the layouts of int4.py."""
    from . import int4_lanes, int4_tiles

    if device.type != "cpu":
        return "words"
    if may_generate and num_outputs % int4_lanes.TILE == 0:
        return "lanes"
    size = int4_tiles.tile_size()
    return "tiles" if size is not None and num_outputs % size == 0 else "words"
