"""One request: a conversation, and how to answer it. The defaults are what Moonshot recommends for Kimi K2.5."""

import math
from dataclasses import dataclass
from typing import Any

from .errors import UsageError
from .messages import calls_of


@dataclass(frozen=True)
class Request:
    """Messages and tools in the OpenAI format, mode and sampling. Raises UsageError for settings out of range.

    temperature None: the published one of the mode. seed None: another sample each time.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    thinking: bool = True
    temperature: float | None = None
    top_p: float = 0.95
    max_new_tokens: int = 16384
    seed: int | None = None

    def __post_init__(self) -> None:
        check_sampling(self.sampling_temperature, self.top_p)
        check_max_new_tokens(self.max_new_tokens)
        if self.seed is not None:
            check_seed(self.seed)

    @property
    def sampling_temperature(self) -> float:
        if self.temperature is None:
            return published_temperature(self.thinking)
        return self.temperature

    @property
    def calls_before(self) -> int:
        """Tool calls in the (checked) conversation so far; the ids of new calls count on from here."""
        return sum(len(calls_of(message)) for message in self.messages)


def published_temperature(thinking: bool) -> float:
    return 1.0 if thinking else 0.6


def check_sampling(temperature: float, top_p: float) -> None:
    """Raise UsageError unless temperature is finite and not negative, and top_p in (0, 1]."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UsageError(f"temperature is {temperature}; expected a number from 0 up. Use 0 for greedy decoding.")
    if not 0 < top_p <= 1:
        raise UsageError(f"top_p is {top_p}; expected a number above 0 and up to 1. Use 1 to keep every token.")


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed is {seed}; expected a whole number from 0 to 2^63 - 1. Choose a smaller one.")


def check_max_new_tokens(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens}; expected at least 1. Leave it out for the default.")
