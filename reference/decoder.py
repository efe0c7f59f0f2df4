"""The text model: embedding, decoder layers, final norm, and an output head that is not tied to the embedding."""

import torch
from torch import Tensor, nn

from .attention import MultiHeadLatentAttention, Step
from .cache import LatentCache
from .config import TextConfig
from .mlp import SwiGLU
from .moe import MixtureOfExperts
from .norm import RMSNorm
from .rope import rotation
from .stages import stage

# B batch   T new tokens   C hidden_size   O vocab_size


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); dense below first_k_dense_replace, experts above."""

    def __init__(self, config: TextConfig, layer_index: int):
        super().__init__()
        self.layer_index = layer_index
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config, layer_index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if layer_index < config.first_k_dense_replace:
            self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = MixtureOfExperts(config, layer_index)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        """hidden (B, T, C) to (B, T, C)."""
        attended = self.self_attn(self.input_layernorm(hidden), step)  # (B, T, C)
        hidden = hidden + stage(f"layers.{self.layer_index}.attn.out", attended)  # (B, T, C)
        fed = self.mlp(self.post_attention_layernorm(hidden))  # (B, T, C)
        return hidden + stage(f"layers.{self.layer_index}.mlp.out", fed)  # (B, T, C)


class Decoder(nn.Module):
    """The stack of layers between embedding and final norm."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        # nn.Embedding() would fill the table with random numbers, which loads a compiler first: seconds, for nothing.
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, cache: LatentCache | None, num_padding: Tensor | None, form: str) -> Tensor:
        """Embedded tokens (B, T, C) to the normed output of the last layer (B, T, C)."""
        hidden = stage("hidden.0", hidden)  # (B, T, C)
        step = self._step(hidden, cache, num_padding, form)
        for i, layer in enumerate(self.layers):
            hidden = stage(f"hidden.{i + 1}", layer(hidden, step))  # (B, T, C)
        return self.norm(hidden)  # (B, T, C)

    def _step(self, hidden: Tensor, cache: LatentCache | None, num_padding: Tensor | None, form: str) -> Step:
        batch_size, num_tokens, _ = hidden.shape
        past = 0 if cache is None else cache.length
        positions = (torch.arange(num_tokens, device=hidden.device) + past).expand(batch_size, -1)  # (B, T)
        if num_padding is not None:
            positions = (positions - num_padding[:, None]).clamp(min=0)  # (B, T), a row's first real token is at 0
        cos, sin = rotation(positions, self.config, hidden.dtype)
        if form == "auto":
            form = "absorbed" if cache is not None and num_tokens == 1 else "expanded"
        return Step(cos, sin, past, num_padding, cache, form)


class LanguageModel(nn.Module):
    """Decoder and head, under the published names `model.` and `lm_head.`."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, hidden: Tensor, cache: LatentCache | None, num_padding: Tensor | None, form: str, last_only: bool
    ) -> Tensor:
        """Embedded tokens (B, T, C) to logits (B, T, O), or (B, 1, O) of the last token alone."""
        hidden = self.model(hidden, cache, num_padding, form)  # (B, T, C)
        if last_only:
            hidden = hidden[:, -1:]  # (B, 1, C)
        return stage("logits", self.lm_head(hidden))
