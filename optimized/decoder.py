"""The text model around the fast layers: as reference/decoder.py, computed by one function that can be compiled."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from reference import decoder as plain
from reference.config import TextConfig
from reference.mlp import SwiGLU
from reference.norm import RMSNorm
from reference.rope import inverse_frequencies, rotation
from reference.stages import stage

from . import capability
from .attention import MultiHeadLatentAttention, Step, block_mask
from .cache import SLOT_STEP, LatentCache
from .flex_decode import decode_mask
from .linear import use_fast_linears
from .moe import MixtureOfExperts

# B batch   T new tokens   C hidden_size   O vocab_size

class DecoderLayer(plain.DecoderLayer):
    def __init__(self, config: TextConfig, layer_index: int):
        nn.Module.__init__(self)
        self.layer_index = layer_index
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config, layer_index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if layer_index < config.first_k_dense_replace:
            self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = MixtureOfExperts(config, layer_index)


class Decoder(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        """Embedded tokens (B, T, C) to the normed output of the last layer (B, T, C)."""
        hidden = stage("hidden.0", hidden)  # (B, T, C)
        for i, layer in enumerate(self.layers):
            hidden = stage(f"hidden.{i + 1}", layer(hidden, step))  # (B, T, C)
        return self.norm(hidden)  # (B, T, C)


class LanguageModel(plain.LanguageModel):
    """Decoder and head. `compute` is what torch.compile sees: one graph, tensors in, logits out."""

    def __init__(self, config: TextConfig):
        nn.Module.__init__(self)
        self.text_config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        use_fast_linears(self)
        self.attention = "auto"  # or "flex" or "products", for prefill and decoding
        self.compiled: Callable | None = None
        self.decode_graph: Callable | None = None  # one token per row as one CUDA graph
        self.frequencies: Tensor | None = None  # (P/2), where the model is: a recorded step may not fetch them

    def forward(
        self, hidden: Tensor, cache: LatentCache | None, num_padding: Tensor | None, form: str, last_only: bool
    ) -> Tensor:
        """Embedded tokens (B, T, C) to logits (B, T, O), or (B, 1, O) of the last token alone."""
        batch_size, num_tokens, _ = hidden.shape
        self.keep_frequencies(hidden.device)
        if form == "auto":
            form = "absorbed" if cache is not None and num_tokens == 1 else "expanded"
        if cache is not None:
            cache.reserve(num_tokens, batch_size)
        start = hidden.new_zeros(batch_size, dtype=torch.int64) if cache is None else cache.lengths  # (B,)
        padding = torch.zeros_like(start) if num_padding is None else num_padding  # (B,)
        layers, num_slots = self._keys(cache, num_tokens, form)
        is_flex, is_decoding = self._attention(form, hidden.device) == "flex", form == "absorbed" and num_tokens == 1
        flex = block_mask(start, padding, num_tokens, num_slots) if is_flex and not is_decoding else None
        compute = self.compute if self.compiled is None else self.compiled
        if self.decode_graph is not None and is_decoding and cache is not None:
            compute = self.decode_graph
        logits = compute(hidden, start, padding, layers, form, num_slots, flex, is_flex and is_decoding, last_only)
        if cache is not None:
            cache.advance(num_tokens)
        return logits

    def compute(
        self, hidden: Tensor, start: Tensor, num_padding: Tensor, layers: list[Tensor] | None, form: str,
        num_slots: int, flex: BlockMask | None, decodes_by_flex: bool, last_only: bool,
    ) -> Tensor:  # fmt: skip
        if decodes_by_flex:
            flex = decode_mask(start, num_padding, num_slots)
        positions = start[:, None] + torch.arange(hidden.shape[1], device=hidden.device)  # (B, T)
        positions = (positions - num_padding[:, None]).clamp(min=0)  # (B, T), a row's first real token is at 0
        cos, sin = rotation(positions, self.text_config, hidden.dtype, self.frequencies)
        step = Step(cos, sin, start, num_padding, layers, form, num_slots, flex)
        hidden = self.model(hidden, step)  # (B, T, C)
        if last_only:
            hidden = hidden[:, -1:]  # (B, 1, C)
        return stage("logits", self.lm_head(hidden))

    def keep_frequencies(self, device: torch.device) -> None:
        if self.frequencies is None or self.frequencies.device != device:
            self.frequencies = inverse_frequencies(self.text_config).to(device)

    def _keys(self, cache: LatentCache | None, num_tokens: int, form: str) -> tuple[list[Tensor] | None, int]:
        """The cache's tensors and how many of their slots queries may look at.

        Decoding on CUDA is shown all of them, for shapes that stay can be recorded. On a CPU it is shown whole steps of
        slots, for a matrix library prepares itself for each new shape, longer than the product takes. What lies beyond
        a row is masked.
        """
        if cache is None:
            return None, num_tokens
        num_slots, filled = cache.layers[0].shape[1], cache.length + num_tokens
        if form == "expanded":
            return cache.layers, filled
        return cache.layers, num_slots if cache.layers[0].is_cuda else -(-filled // SLOT_STEP) * SLOT_STEP

    def _attention(self, form: str, device: torch.device) -> str:
        if self.attention != "auto":
            return self.attention
        if form == "absorbed":
            return capability.decode_attention(device)
        return capability.prefill_attention(device, is_compiled=self.compiled is not None)
