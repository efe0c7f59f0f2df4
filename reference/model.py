"""The whole model: embed the tokens, put the picture's features in their places, decode.

    model = load_model("reference/nano")
    logits = model(input_ids, pixel_values=pixel_values, grid_thws=grid_thws)
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from .cache import LatentCache
from .checkpoint import Checkpoint, fill, use_int4
from .config import KimiConfig
from .decoder import DecoderLayer, LanguageModel
from .errors import MediaError
from .mlp import SwiGLU
from .moe import MixtureOfExperts
from .projector import KimiVLProjector, PatchMergerMLP
from .vision import VisionTower

# B batch   T new tokens   C hidden_size   M media   L patches of all media   m media tokens


class KimiModel(nn.Module):
    """Text and vision. Submodules have the published names: `language_model`, `vision_tower`, `mm_projector`.

    A text-only relative has no `language_model.` prefix: see `TextOnlyModel`.
    """

    def __init__(self, config: KimiConfig):
        super().__init__()
        self.config = config
        self.language_model = LanguageModel(config.text)
        self.vision_tower = VisionTower(config.vision)
        if config.model_type == "kimi_vl":
            self.multi_modal_projector = KimiVLProjector(config.vision, config.text.hidden_size)
        else:
            self.mm_projector = PatchMergerMLP(config.vision, config.text.hidden_size)

    def forward(
        self,
        input_ids: Tensor,
        *,
        pixel_values: Tensor | None = None,
        grid_thws: Tensor | None = None,
        cache: LatentCache | None = None,
        num_padding: Tensor | None = None,
        form: str = "auto",
        last_only: bool = False,
    ) -> Tensor:
        """Logits (B, T, vocab_size), or (B, 1, vocab_size) with `last_only`.

        input_ids (B, T) int64, holding one media_placeholder_token_id per media token; features take their places in
        reading order. pixel_values (L, 3, 14, 14) and grid_thws (M, 3) int64. num_padding (B,) counts the tokens on a
        row's left that are padding. form: "expanded" or "absorbed" attention, or "auto" for absorbed where one token
        meets a cache. Raises MediaError if pixels, grids and placeholders do not fit one another.
        """
        hidden = self.embed(input_ids, pixel_values, grid_thws)  # (B, T, C)
        return self.language_model(hidden, cache, num_padding, form, last_only)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None, grid_thws: Tensor | None) -> Tensor:
        """Token embeddings with the media's features in their places, (B, T, C): what the decoder reads."""
        if (pixel_values is None) != (grid_thws is None):
            raise MediaError("pixel_values and grid_thws belong together; expected both or neither.")
        hidden = self.language_model.model.embed_tokens(input_ids)  # (B, T, C)
        if pixel_values is None:
            return hidden  # (B, T, C)
        return self._place_media(hidden, input_ids, self.media_features(pixel_values, grid_thws))  # (B, T, C)

    def media_features(self, pixel_values: Tensor, grid_thws: Tensor) -> Tensor:
        """One vector per media token, (m, C), in the order of grid_thws."""
        projector = self.multi_modal_projector if self.config.model_type == "kimi_vl" else self.mm_projector
        return projector(self.vision_tower(pixel_values, grid_thws))  # (m, C)

    def _place_media(self, hidden: Tensor, input_ids: Tensor, features: Tensor) -> Tensor:
        places = input_ids == self.config.media_placeholder_token_id  # (B, T)
        num_places = int(places.sum())
        if num_places != len(features):
            raise MediaError(
                f"input_ids: {num_places} media placeholders for {len(features)} media tokens; expected one "
                "placeholder per token, that is (h/2) * (w/2) for each row of grid_thws."
            )
        return hidden.masked_scatter(places[..., None], features.to(hidden.dtype))  # (B, T, C)

    def new_cache(self, batch_size: int) -> LatentCache:
        weight = self.language_model.model.embed_tokens.weight
        return LatentCache(self.config.text, batch_size, weight.dtype, weight.device)


class TextOnlyModel(LanguageModel):
    """K2, K2-Thinking, Moonlight: the same decoder at the top level, called like `KimiModel`, without media."""

    def __init__(self, config: KimiConfig):
        super().__init__(config.text)
        self.config = config

    def forward(
        self,
        input_ids: Tensor,
        *,
        pixel_values: Tensor | None = None,
        grid_thws: Tensor | None = None,
        cache: LatentCache | None = None,
        num_padding: Tensor | None = None,
        form: str = "auto",
        last_only: bool = False,
    ) -> Tensor:
        """As KimiModel.forward. Raises MediaError if there are pixels."""
        if pixel_values is not None:
            raise MediaError(f"model_type {self.config.model_type} has no vision tower; send text only.")
        return super().forward(self.model.embed_tokens(input_ids), cache, num_padding, form, last_only)

    def new_cache(self, batch_size: int) -> LatentCache:
        weight = self.model.embed_tokens.weight
        return LatentCache(self.config.text, batch_size, weight.dtype, weight.device)


def build_model(config: KimiConfig) -> KimiModel | TextOnlyModel:
    """The architecture on the meta device: all names, shapes and dtypes, no memory.

    Routed experts are packed if the configuration says INT4; weights are bfloat16, as published.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = KimiModel(config) if config.vision is not None else TextOnlyModel(config)
    finally:
        torch.set_default_dtype(default)
    if config.quantization == "int4":
        use_int4(model, routed_linears(model))
    return model.eval()


def routed_linears(model: nn.Module) -> list[str]:
    """Names of the routed experts' linears: what the published checkpoints quantise."""
    experts = [f"{name}.experts" for name, module in model.named_modules() if isinstance(module, MixtureOfExperts)]
    return [
        f"{name}.{i}.{projection}"
        for name in experts
        for i in range(len(model.get_submodule(name)))
        for projection in ("gate_proj", "up_proj", "down_proj")
    ]


def load_model(
    directory: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> KimiModel | TextOnlyModel:
    """Load a checkpoint folder. Raises ConfigError or CheckpointError, listing every problem at once."""
    checkpoint = Checkpoint(directory)
    config = checkpoint.config
    with torch.device("meta"):
        model = KimiModel(config) if config.vision is not None else TextOnlyModel(config)
    fill(model, checkpoint, "", dtype, device)
    return model.eval()


def load_layer(
    checkpoint: Checkpoint, layer_index: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> DecoderLayer:
    """One decoder layer, reading nothing else: how to study a 595 GB checkpoint on a small machine."""
    with torch.device("meta"):
        layer = DecoderLayer(checkpoint.config.text, layer_index)
    fill(layer, checkpoint, f"{_decoder_prefix(checkpoint)}layers.{layer_index}.", dtype, device)
    return layer.eval()


def load_expert(
    checkpoint: Checkpoint, layer_index: int, expert_id: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> SwiGLU:
    """One routed expert, reading nothing else."""
    config = checkpoint.config.text
    with torch.device("meta"):
        expert = SwiGLU(config.hidden_size, config.moe_intermediate_size)
    prefix = f"{_decoder_prefix(checkpoint)}layers.{layer_index}.mlp.experts.{expert_id}."
    fill(expert, checkpoint, prefix, dtype, device)
    return expert.eval()


def _decoder_prefix(checkpoint: Checkpoint) -> str:
    return "model." if checkpoint.config.vision is None else "language_model.model."
