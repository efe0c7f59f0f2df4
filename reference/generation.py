"""The generation loop: prompts in, sampled tokens out, token by token through the latent cache.

Prompts of different lengths run as one batch: the shorter ones are padded on the left, where the model masks them, so
that the newest token of every row stands in the last column. A row that has ended leaves the batch.
"""

import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checkpoint import Checkpoint, StoredTensor
from .errors import CheckpointError, ContextError
from .prompt import Processor, Prompt
from .replies import Event, Reply, ReplyParser
from .request import Request, check_max_new_tokens
from .sampling import Sampler
from .tokenizer import StreamDecoder, Tokenizer

# B prompts in the batch   T tokens of the longest prompt   R rows still running   V vocab_size


@dataclass
class Generated:
    """A reply as ids, without the stop token. finish_reason: "stop" after a stop token, "length" at the limit."""

    ids: list[int] = field(default_factory=list)
    finish_reason: str = "length"

    @property
    def num_sampled(self) -> int:
        """Tokens that the model was run for, the stop token included: what a bill or a speed counts."""
        return len(self.ids) + (self.finish_reason == "stop")


@torch.inference_mode()
def generate(model: torch.nn.Module, prompts: Sequence[Prompt], *, max_new_tokens: int, temperature: float,
             top_p: float, seed: int | Sequence[int], stop_ids: Iterable[int],
             on_token: Callable[[int, int], None] | None = None) -> list[Generated]:
    """Continue every prompt until a stop token, `max_new_tokens` or the end of the context.

    seed: one number for all (each prompt then samples what it would sample alone), or one per prompt. on_token(row, id)
    is called for every id of the results, in order. Raises UsageError for settings out of range and TemplateError for a
    prompt that leaves no room in the context.
    """
    check_max_new_tokens(max_new_tokens)
    context = model.config.text.max_position_embeddings
    limits = [min(max_new_tokens, room(len(prompt.input_ids), context)) for prompt in prompts]
    sampler = Sampler(temperature, top_p, [seed] * len(prompts) if isinstance(seed, int) else seed)
    results, stop_ids = [Generated() for _ in prompts], frozenset(stop_ids)
    if not prompts:
        return results
    batch = _Batch(model, prompts)
    logits = batch.prefill(prompts)                                       # (B, V)
    while True:
        sampled = sampler.sample(logits, batch.rows)
        running = []
        for position, (row, token) in enumerate(zip(batch.rows, sampled, strict=True)):
            if token in stop_ids:
                results[row].finish_reason = "stop"
                continue
            results[row].ids.append(token)
            if on_token:
                on_token(row, token)
            if len(results[row].ids) < limits[row]:
                running.append(position)
        if not running:
            return results
        batch.keep(running)
        logits = batch.step([sampled[position] for position in running])  # (R, V)


def room(num_prompt_tokens: int, context: int) -> int:
    """New tokens that fit behind a prompt."""
    if num_prompt_tokens >= context:
        raise ContextError(f"the prompt has {num_prompt_tokens} tokens, the model's context {context}; expected room "
                           "for at least one new token. Shorten the conversation or leave media out.")
    return context - num_prompt_tokens


class _Batch:
    """The rows that are still running: their cache, their padding and the prompt each one belongs to."""

    def __init__(self, model: torch.nn.Module, prompts: Sequence[Prompt]) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.rows = list(range(len(prompts)))
        self.cache = model.new_cache(len(prompts))
        lengths = torch.tensor([len(prompt.input_ids) for prompt in prompts])    # (B,)
        self.num_padding = (lengths.max() - lengths).to(self.device)             # (B,)

    def prefill(self, prompts: Sequence[Prompt]) -> Tensor:
        """Run all prompts at once; logits (B, V) of the token after each."""
        padded = [[0] * padding + prompt.input_ids
                  for padding, prompt in zip(self.num_padding.tolist(), prompts, strict=True)]
        input_ids = torch.tensor(padded, device=self.device)                     # (B, T)
        return self._forward(input_ids, pixel_values=self._joined([prompt.pixel_values for prompt in prompts]),
                             grid_thws=self._joined([prompt.grid_thws for prompt in prompts]))

    def step(self, tokens: list[int]) -> Tensor:
        """Run the newest token of each row; logits (R, V) of the next."""
        return self._forward(torch.tensor(tokens, device=self.device).unsqueeze(-1))

    def keep(self, positions: list[int]) -> None:
        """Let every other row leave, with its cache."""
        if len(positions) < len(self.rows):
            kept = torch.tensor(positions, device=self.device)                   # (R,)
            self.cache.keep_rows(kept)
            self.num_padding = self.num_padding[kept]                            # (R,)
            self.rows = [self.rows[position] for position in positions]

    def _forward(self, input_ids: Tensor, **media: Tensor | None) -> Tensor:
        num_padding = self.num_padding if self.num_padding.any() else None
        logits = self.model(input_ids, cache=self.cache, num_padding=num_padding, last_only=True, **media)  # (B, 1, V)
        return logits[:, -1]

    def _joined(self, arrays: list[np.ndarray | None]) -> Tensor | None:
        """Media of all prompts in row order, which is how the model meets their placeholders."""
        present = [array for array in arrays if array is not None]
        return torch.from_numpy(np.concatenate(present)).to(self.device) if present else None


class ReplyStream:
    """Reads a reply id by id. Only control ids are markers; `</think>` spelled in ordinary tokens stays text."""

    def __init__(self, tokenizer: Tokenizer, thinking: bool, tools: list | None = None, calls_before: int = 0) -> None:
        self.tokenizer = tokenizer
        self.parser = ReplyParser(thinking, tools, calls_before)
        self.decoder = StreamDecoder(tokenizer)

    def push(self, token: int) -> list[Event]:
        """What this id adds; nothing yet for the first bytes of a longer character."""
        name = self.tokenizer.control_names.get(token)
        if name is None:
            return self.parser.text(self.decoder.push(token))
        return self.parser.text(self.decoder.finish()) + self.parser.control(name)

    def finish(self) -> list[Event]:
        """What was held back until the end of the reply."""
        return self.parser.text(self.decoder.finish()) + self.parser.finish()

    def result(self) -> Reply:
        return self.parser.result()


def read_reply(ids: Iterable[int], tokenizer: Tokenizer, thinking: bool, tools: list | None = None,
               calls_before: int = 0) -> Reply:
    """A whole reply at once."""
    stream = ReplyStream(tokenizer, thinking, tools, calls_before)
    for token in ids:
        stream.push(token)
    stream.finish()
    return stream.result()


@dataclass(frozen=True)
class Answer:
    """A reply with its finish reason ("stop", "length", "tool_calls"), its size and the seconds it took."""

    reply: Reply
    finish_reason: str
    num_prompt_tokens: int
    num_completion_tokens: int
    prefill_s: float  # until the first token was sampled
    decode_s: float   # all others

    @property
    def prefill_tok_s(self) -> float:
        return self.num_prompt_tokens / self.prefill_s

    @property
    def decode_tok_s(self) -> float:
        return (self.num_completion_tokens - 1) / self.decode_s if self.decode_s else 0.0


def answer(model: torch.nn.Module, processor: Processor, prompt: Prompt, request: Request,
           on_event: Callable[[Event], None]) -> Answer:
    """Generate the reply to one request; on_event sees each piece of it as soon as it is certain."""
    stream = ReplyStream(processor.tokenizer, request.thinking, request.tools, request.calls_before)
    started = time.perf_counter()
    first_token_at: list[float] = []

    def on_token(row: int, token: int) -> None:
        if not first_token_at:
            first_token_at.append(time.perf_counter())
        for event in stream.push(token):
            on_event(event)

    seed = secrets.randbits(32) if request.seed is None else request.seed
    [generated] = generate(model, [prompt], max_new_tokens=request.max_new_tokens,
                           temperature=request.sampling_temperature, top_p=request.top_p, seed=seed,
                           stop_ids=processor.stop_ids, on_token=on_token)
    ended = time.perf_counter()
    for event in stream.finish():
        on_event(event)
    reply, prefilled = stream.result(), first_token_at[0] if first_token_at else ended
    # A reply cut by the limit says so even if it has calls: the last one may be incomplete.
    finish_reason = "tool_calls" if generated.finish_reason == "stop" and reply.tool_calls else generated.finish_reason
    return Answer(reply, finish_reason, len(prompt.input_ids), generated.num_sampled,
                  prefill_s=prefilled - started, decode_s=ended - prefilled)


def check_memory(directory: Path, dtype: torch.dtype, device: str, num_tokens: int) -> None:
    """Raise CheckpointError if the weights and a cache of `num_tokens` cannot fit, before anything is loaded."""
    checkpoint = Checkpoint(directory)
    text = checkpoint.config.text
    weights = sum(_loaded_bytes(name, stored, dtype) for name, stored in checkpoint.tensors.items())
    cache = num_tokens * text.num_hidden_layers * (text.kv_lora_rank + text.qk_rope_head_dim) * dtype.itemsize
    if device == "cuda":
        memory = torch.cuda.mem_get_info()[1]
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if weights + cache > memory:
        raise CheckpointError(
            f"{directory}: needs {weights / 2**30:.1f} GiB for weights and {cache / 2**30:.1f} GiB for the cache of "
            f"{num_tokens} tokens; {device} has {memory / 2**30:.1f} GiB in all. Where the bytes go: "
            f"python -m tools.inspect_checkpoint {directory}")


def _loaded_bytes(name: str, stored: StoredTensor, dtype: torch.dtype) -> int:
    """INT4 words and scales stay as they are stored; everything else becomes `dtype`."""
    is_kept = stored.dtype in ("I32", "I64") or name.endswith(".weight_scale")
    return stored.size_bytes if is_kept else math.prod(stored.shape) * dtype.itemsize
