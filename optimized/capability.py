"""Which form runs where: the one place that decides, by what the machine can do, never by its name.

What each choice rests on is measured in docs/performance.md.
"""

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ATTENTIONS = ("auto", "flex", "products")


def has_compiler(device: "torch.device") -> bool:
    """Whether torch.compile can generate code for this device: a C++ compiler for a CPU, Triton for CUDA."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return has_triton()
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


def prefill_attention(device: "torch.device", is_compiled: bool) -> str:
    """FlexAttention on CUDA where it is compiled; on a CPU products in blocks are 1.3 times as fast, and more."""
    return "flex" if is_compiled and device.type == "cuda" else "products"


def decode_attention(device: "torch.device") -> str:
    """One query reads the latents once. On a CPU two products with a softmax between them read them fastest by far."""
    return "products" if device.type == "cpu" else "flex"


def compiles_by_default(device: "torch.device") -> bool:
    """A short command on a CPU is over before a compiler is; on CUDA launches cost more than kernels."""
    return device.type == "cuda" and has_compiler(device)
