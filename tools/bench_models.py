"""What `tools.bench` measures: a checkpoint's weights, or random ones of a named size."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.config import KimiConfig, read_config_file
from reference.errors import UsageError
from reference.presets import PRESETS, preset_dict

if TYPE_CHECKING:
    from torch import Tensor

# Large enough that memory decides, small enough for a laptop: 0.76 billion weights, K2.5's proportions of attention.
MID = {
    "hidden_size": 1024, "num_hidden_layers": 8, "first_k_dense_replace": 1, "intermediate_size": 2560,
    "moe_intermediate_size": 512, "n_routed_experts": 64, "num_experts_per_tok": 8, "num_attention_heads": 16,
    "num_key_value_heads": 16, "kv_lora_rank": 512, "q_lora_rank": 768, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "vocab_size": 16384, "max_position_embeddings": 8192,
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Tensors under their published names, with the configuration as read and as written in `config.json`."""

    config: KimiConfig
    raw_text_config: dict[str, Any]
    tensors: dict[str, "Tensor"]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def bytes_per_token(self, expert_bits: float, itemsize: int) -> float:
        """Bytes that decoding one token has to read: attention, shared parts, head, and the experts of one token.

        expert_bits: how many bits the engine keeps a routed weight in, scales included; itemsize: bytes of any other.
        """
        text = self.config.text
        share = text.num_experts_per_tok / text.n_routed_experts
        total = 0.0
        for name, tensor in self.tensors.items():
            if not re.search(r"\.layers\.\d+\.|lm_head\.", name) or name.endswith((".weight_scale", ".weight_shape")):
                continue
            elements = tensor.numel() * (8 if name.endswith(".weight_packed") else 1)
            if ".experts." in name and "shared_experts" not in name:
                total += elements * share * expert_bits / 8
            else:
                total += elements * itemsize
        return total


def published_weights(directory: Path) -> Weights:
    """Everything in a checkpoint folder. Raises ConfigError or CheckpointError."""
    from reference.checkpoint import Checkpoint

    checkpoint = Checkpoint(directory)
    raw = read_config_file(directory / "config.json")
    tensors = {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
    return Weights(checkpoint.config, raw.get("text_config", raw), tensors)


def random_weights(name: str) -> Weights:
    """Random weights of a named size, experts packed where they are published packed.

    Raises UsageError if there is no such name or too little memory.
    """
    import torch

    from reference.model import build_model

    raw = named_config(name)
    config = KimiConfig.from_dict(raw)
    model = build_model(config)
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    if needed > available_bytes():
        raise UsageError(
            f"--preset {name}: needs {needed / 2**30:,.1f} GiB of memory for weights alone, "
            f"{available_bytes() / 2**30:,.1f} GiB are available. Use --preset tiny, or --model for the shipped model."
        )
    torch.manual_seed(0)
    tensors = {name: random_like(name, meta) for name, meta in model.state_dict().items()}
    return Weights(config, raw.get("text_config", raw), tensors)


def named_config(name: str) -> dict[str, Any]:
    """`config.json` of a preset, of `mid`, or of N mixture layers of K2.5, with all 384 experts or fewer."""
    if name in PRESETS:
        return preset_dict(name)
    layers = re.fullmatch(r"k2\.5-layers-([1-9]\d?)(?:-experts-([1-9]\d{1,2}))?", name)
    if name != "mid" and not layers:
        raise UsageError(
            f"--preset {name}: unknown; expected {', '.join(PRESETS)}, mid, k2.5-layers-N or k2.5-layers-N-experts-E."
        )
    raw = preset_dict("kimi-k2.5")
    raw["text_config"] |= MID if name == "mid" else {"num_hidden_layers": int(layers[1]), "first_k_dense_replace": 0}
    if layers and layers[2]:
        raw["text_config"]["n_routed_experts"] = int(layers[2])
    if name == "mid":
        raw["vision_config"] |= {"text_hidden_size": MID["hidden_size"]}
        for key in ("media_placeholder_token_id", "pad_token_id", "bos_token_id", "eos_token_id"):
            raw[key] = raw["text_config"][key] = 0
    return raw


def random_like(name: str, meta: "Tensor") -> "Tensor":
    """Values of a plausible size, so that nothing overflows and every expert is chosen by someone."""
    import torch

    if name.endswith(".weight_packed"):
        return torch.randint(-(2**31), 2**31 - 1, meta.shape, dtype=torch.int32)
    if name.endswith(".weight_scale"):
        return torch.full(meta.shape, 2.0**-7 / math.sqrt(meta.shape[1]), dtype=meta.dtype)
    if name.endswith(".weight_shape"):
        return torch.tensor([0, 0], dtype=meta.dtype)
    if "norm" in name and meta.dim() == 1 and name.endswith("weight"):
        return torch.ones(meta.shape, dtype=meta.dtype)
    return 0.02 * torch.randn(meta.shape, dtype=meta.dtype)


def available_bytes() -> int:
    """Memory that programs can still have; where the system does not say, all there is."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
