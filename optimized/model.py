"""The whole model for speed: the same constructor, names and calls as reference/model.py.

    model = load_model("reference/nano")
    logits = model(input_ids, pixel_values=pixel_values, grid_thws=grid_thws)

For inference: the custom operators have no gradient.
"""

from pathlib import Path

import torch
from torch import nn

from reference import model as plain
from reference.checkpoint import Checkpoint, fill
from reference.config import KimiConfig
from reference.errors import UsageError
from reference.projector import KimiVLProjector, PatchMergerMLP

from . import capability
from .attention import MultiHeadLatentAttention
from .cache import LatentCache
from .cuda_graph import DecodeGraph
from .decoder import LanguageModel
from .generated import Generated
from .moe import Experts, Int4Experts, MixtureOfExperts
from .vision import VisionTower


class KimiModel(plain.KimiModel):
    def __init__(self, config: KimiConfig):
        nn.Module.__init__(self)
        self.config = config
        self.language_model = LanguageModel(config.text)
        self.vision_tower = VisionTower(config.vision)
        if config.model_type == "kimi_vl":
            self.multi_modal_projector = KimiVLProjector(config.vision, config.text.hidden_size)
        else:
            self.mm_projector = PatchMergerMLP(config.vision, config.text.hidden_size)

    def new_cache(self, batch_size: int, num_tokens: int | None = None) -> LatentCache:
        """Room for num_tokens per row; without that number it grows."""
        weight = self.language_model.model.embed_tokens.weight
        return LatentCache(self.config.text, batch_size, weight.dtype, weight.device, num_tokens)


class TextOnlyModel(plain.TextOnlyModel, LanguageModel):
    """K2, K2-Thinking, Moonlight: the language model at the top level."""

    def __init__(self, config: KimiConfig):
        LanguageModel.__init__(self, config.text)
        self.config = config

    def new_cache(self, batch_size: int, num_tokens: int | None = None) -> LatentCache:
        """Room for num_tokens per row; without that number it grows."""
        weight = self.model.embed_tokens.weight
        return LatentCache(self.config.text, batch_size, weight.dtype, weight.device, num_tokens)


def load_model(
    directory: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> KimiModel | TextOnlyModel:
    """Load a checkpoint folder.

    Raises ConfigError or CheckpointError as the reference does, UsageError for a dtype or device without a form.
    """
    capability.check_version()
    capability.check_device(device)
    if dtype not in (torch.float32, torch.bfloat16):
        raise UsageError(f"the optimized model runs in float32 or bfloat16, not {dtype}. Use the reference for others.")
    checkpoint = Checkpoint(directory)
    with torch.device("meta"):
        config = checkpoint.config
        model = KimiModel(config) if config.vision is not None else TextOnlyModel(config)
        if checkpoint.int4_linears():
            use_int4_experts(model, dtype)
    fill(model, checkpoint, "", dtype, device)
    return model.eval()


def use_int4_experts(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every mixture-of-experts layer packed experts of the same sizes."""
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            num_experts, hidden_size, width = module.experts.down.shape
            module.experts = Int4Experts(num_experts, hidden_size, width, dtype)


def set_attention(model: nn.Module, attention: str) -> None:
    """Choose the attention of text and vision: "auto", "flex" or "products". Raises UsageError for another name."""
    if attention not in capability.ATTENTIONS:
        raise UsageError(f"attention {attention!r} is unknown; expected one of {', '.join(capability.ATTENTIONS)}.")
    for module in model.modules():
        if hasattr(module, "attention"):
            module.attention = attention


def compile_steps(model: nn.Module) -> None:
    """Compile prefill and decoding; on CUDA a decode step is replayed as one graph.

    Raises UsageError if this machine has no compiler for the model's device.
    """
    device = next(model.parameters()).device
    if not capability.has_compiler(device):
        need = "Triton" if device.type == "cuda" else "a C++ compiler (g++ or clang++)"
        raise UsageError(f"torch.compile needs {need}, and there is none here. Install it, or leave out --compile.")
    for module in model.modules():
        if isinstance(module, Experts):
            module.use_generated()
        if isinstance(module, MultiHeadLatentAttention):
            module.may_generate = True
        if isinstance(module, LanguageModel):
            module.compiled = Generated(module.compute, dynamic=True)
            module.decode_graph = DecodeGraph(module.compiled) if device.type == "cuda" else None
