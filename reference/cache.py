"""The latent cache: what latent attention keeps of each token, instead of keys and values for every head.

Per token and layer: the normalised latent (kv_lora_rank) and the one rotated key that all heads share
(qk_rope_head_dim). K2.5 keeps 576 values, 1,152 bytes in bfloat16; keys and values of 64 heads would be 35.6 times
more.
Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.2.
"""

import torch
from torch import Tensor

from .config import TextConfig

# B batch   T new tokens   S cached tokens   R kv_lora_rank   P qk_rope_head_dim


class LatentCache:
    """Grows at the end of the S axis. Tensors are replaced, never written into, so autograd may pass through."""

    def __init__(self, config: TextConfig, batch_size: int, dtype: torch.dtype, device: torch.device | str):
        def empty(width: int) -> list[Tensor]:
            shape = (batch_size, 0, width)
            return [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]

        self.latents = empty(config.kv_lora_rank)
        self.rope_keys = empty(config.qk_rope_head_dim)

    def append(self, layer_index: int, latent: Tensor, k_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new tokens' latent (B, T, R) and k_pe (B, T, P); return all: (B, S, R), (B, S, P)."""
        self.latents[layer_index] = torch.cat([self.latents[layer_index], latent], dim=1)
        self.rope_keys[layer_index] = torch.cat([self.rope_keys[layer_index], k_pe], dim=1)
        return self.latents[layer_index], self.rope_keys[layer_index]

    def keep_rows(self, rows: Tensor) -> None:
        """Drop every sequence of the batch that is not in `rows` (int64 indices)."""
        self.latents = [latent[rows] for latent in self.latents]
        self.rope_keys = [k_pe[rows] for k_pe in self.rope_keys]

    def keep_tokens(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens` of every sequence."""
        self.latents = [latent[:, :num_tokens] for latent in self.latents]
        self.rope_keys = [k_pe[:, :num_tokens] for k_pe in self.rope_keys]

    @property
    def length(self) -> int:
        """Tokens per sequence, left padding included."""
        return self.latents[-1].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in [*self.latents, *self.rope_keys])
