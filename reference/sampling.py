"""Choosing the next token: exact greedy at temperature 0, otherwise temperature and nucleus (top-p) sampling.

Each prompt has a random generator of its own, on the CPU, and draws one uniform number per token. So a sample
depends on the seed and the prompt: not on the batch it happens to be in, and not on the device.
"""

# B prompts in the batch   V vocab_size

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import CheckpointError
from .request import check_sampling, check_seed


class Sampler:
    """Draws tokens for a list of prompts, each from its own seed."""

    def __init__(self, temperature: float, top_p: float, seeds: Sequence[int]) -> None:
        check_sampling(temperature, top_p)
        self.temperature = temperature
        self.top_p = top_p
        self.generators: list[torch.Generator] = []
        for seed in seeds:
            self.add(seed)

    def add(self, seed: int) -> int:
        """Take one more prompt; returns its row."""
        check_seed(seed)
        self.generators.append(torch.Generator().manual_seed(seed))
        return len(self.generators) - 1

    def sample(self, logits: Tensor, rows: Sequence[int]) -> list[int]:
        """One token id per row. logits (B, V), any float type; rows[b] is the prompt that row b belongs to."""
        if not torch.isfinite(logits.amax(dim=-1)).all():
            raise CheckpointError("the model computed NaN or infinite logits; expected finite numbers. Are the weights "
                                  "damaged? Check them: python -m tools.inspect_checkpoint DIR --verify")
        if self.temperature == 0:
            token_ids = logits.argmax(dim=-1)                                                # (B,), first one on ties
        else:
            draws = torch.stack([self._draw(row) for row in rows]).to(logits.device)         # (B,)
            token_ids = pick(nucleus(logits, self.temperature, self.top_p), draws)           # (B,)
        return token_ids.tolist()

    def _draw(self, row: int) -> Tensor:
        """The next uniform number in [0, 1) of this prompt."""
        return torch.rand((), dtype=torch.float64, generator=self.generators[row])


def nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities (B, V), float64, summing to 1, of the fewest most probable tokens that together reach top_p.

    The token that crosses the border is kept, so there is always at least one.
    Source: Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv 1904.09751, section 3.1.
    """
    logits = logits.double()
    # The largest becomes 0 before the division: a tiny temperature then gives 0 and -inf, never inf - inf.
    probabilities = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)   # (B, V)
    ranked, token_ids = probabilities.sort(dim=-1, descending=True, stable=True)                   # (B, V) (B, V)
    mass_before = ranked.cumsum(dim=-1) - ranked                                                   # (B, V)
    kept = ranked.masked_fill(mass_before >= top_p, 0.0)                                           # (B, V)
    kept = kept / kept.sum(dim=-1, keepdim=True)                                                   # (B, V)
    return torch.zeros_like(kept).scatter(-1, token_ids, kept)


def pick(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Token ids (B,): where each draw (B,) in [0, 1) falls when the probabilities (B, V) are laid end to end."""
    ends = probabilities.cumsum(dim=-1)                                                            # (B, V)
    # Rounding can leave the last end a little below 1; scaling the draw by it never lands on a token of probability 0.
    token_ids = torch.searchsorted(ends, draws.unsqueeze(-1) * ends[:, -1:], right=True)           # (B, 1)
    return token_ids.squeeze(-1)
