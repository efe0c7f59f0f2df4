"""The training loop behind `tools.train`: curriculum, optimisers, expert balance, state, learning curve."""

import json
import pickle
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from reference.attention import MultiHeadLatentAttention
from reference.chat_template import IM_END
from reference.command import write_whole
from reference.config import KimiConfig
from reference.errors import CheckpointError
from reference.generate import SHIPPED_MODEL
from reference.int4 import Int4Linear, dequantize
from reference.model import KimiModel, load_model
from reference.presets import preset_dict
from reference.prompt import Processor
from reference.router import Router
from reference.stages import observing
from reference.tokenizer import Tokenizer, write_tokenizer_files
from tools.curriculum import FULL, GOES_ON, LEARNING_RATE, QUANTISED_FROM, WORLDS, draw_example, learning_rate
from tools.expert_load import LoadCounter
from tools.export_tokenizer_json import write_tokenizer_json
from tools.fingerprint import SIBLING_FILE, fingerprint
from tools.muon import Muon
from tools.nano_checkpoint import master_tensors, stored_tensors, unquantised_config, write_settings, write_weights
from tools.qk_clip import MaxLogits, clip
from tools.quantization_aware import fake_quantize, set_active
from tools.training_batches import IGNORED, LEARNT_TOKENS, Batch, encode_example, micro_batches
from tools.vocabulary import NAMED_SPECIALS, NUM_RANKS, train_vocabulary
from tools.worlds.sample import Sample

# B examples   T tokens   C hidden_size   n tokens of the replies   E n_routed_experts   K num_experts_per_tok

CHAT_TEMPLATE = SHIPPED_MODEL / "chat_template.jinja"  # for other engines; written by hand, tested against our renderer
PRESET = "kimi-k25-nano"
STATE_FILE, CURVE_FILE = "training_state.pt", "training_curve.json"
UNQUANTISED = "unquantised"  # a folder below the checkpoint's
WEIGHT_DECAY = 0.05
EXAMPLES_PER_STEP = 64
MICRO_BATCH_TOKENS = 1024
BIAS_STEP = 2e-3  # how far a step moves the bias of an expert that is used too much or too little
CLIP_EVERY_STEPS = 8  # to look for the largest logits costs 15 % of a step, and they grow slowly
SAVE_EVERY_S, CHECK_EVERY_STEPS, CHECK_EXAMPLES = 180, 100, 128
PROGRESS = ("seed", "worlds", "step", "num_examples", "elapsed_s", "seconds", "begins_at", "largest_logit", "curve")


class Trainer:
    """Owns model, optimisers and progress. Everything it writes is in `directory`."""

    def __init__(
        self, directory: Path, seed: int, device: str, init: Path | None, worlds: Sequence[str] | None = None
    ):
        self.directory, self.seed, self.device = directory, seed, device
        self.worlds = list(worlds or WORLDS)
        torch.manual_seed(seed)
        self.model = (starting_model() if init is None else dense_model(init)).to(device).train()
        if not (directory / STATE_FILE).exists():  # a state goes with the vocabulary that stands beside it
            write_small_files(directory, init, preset_dict(PRESET))
        self.processor = Processor.from_directory(directory)
        fake_quantize(self.model)
        self.threads = one_thread_per_core(device)
        matrices, others = split_parameters(self.model)
        self.params = matrices + others
        self.optimizers = [
            Muon(matrices, LEARNING_RATE, weight_decay=WEIGHT_DECAY, map_shapes=self.threads.map),
            torch.optim.AdamW(others, LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.routers = [module for module in self.model.modules() if isinstance(module, Router)]
        self.attentions = [module for module in self.model.modules() if isinstance(module, MultiHeadLatentAttention)]
        self.step, self.num_examples, self.elapsed_s, self.curve = 0, 0, 0.0, []
        self.largest_logit = 0.0  # of any head in the newest step in which it was looked for
        self.begins_at = 0.0 if init is None else GOES_ON
        self.seconds = 0.0  # of training time in all, once it has begun: curriculum and rate are shares of it

    def restore(self) -> None:
        """Go on from the state in the folder. Raises CheckpointError if it is damaged."""
        file = self.directory / STATE_FILE
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            for name in PROGRESS:
                setattr(self, name, state[name])
        except (RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{file}: is no state of this training ({type(error).__name__}). Begin again in "
                                  "another folder, with --init if there is a checkpoint.") from None

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            **{name: getattr(self, name) for name in PROGRESS},
        }
        with write_whole(self.directory / STATE_FILE) as temporary:
            torch.save(state, temporary)
        with write_whole(self.directory / CURVE_FILE) as temporary:
            document = {"seed": self.seed, "worlds": self.worlds, "curve": self.curve}
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def export(self) -> None:
        export(self.model, self.directory)

    def train(self, seconds: float | None = None) -> None:
        """Step until `seconds` of training time are used up; None goes on for as long as the state was begun with."""
        self.seconds = self.seconds if seconds is None else seconds
        began, saved = time.monotonic() - self.elapsed_s, time.monotonic()
        self.say({"minutes": round(self.seconds / 60, 1), "minutes_used": round(self.elapsed_s / 60, 1)})
        console = Console(stderr=True)
        bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console)
        with bar if console.is_terminal else Quiet() as progress:
            shown = progress.add_task("training", total=self.seconds, completed=self.elapsed_s)
            while self.elapsed_s < self.seconds:
                loss = self.train_step(self.begins_at + self.elapsed_s / self.seconds)
                self.elapsed_s = time.monotonic() - began
                progress.update(shown, completed=self.elapsed_s, description=f"step {self.step}, loss {loss:.3f}")
                if self.step % CHECK_EVERY_STEPS == 0 or self.elapsed_s >= self.seconds:
                    self.curve.append(self.check(loss))
                    self.say(self.curve[-1] | {"minutes_left": round((self.seconds - self.elapsed_s) / 60, 1)})
                if time.monotonic() - saved > SAVE_EVERY_S:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def say(self, values: dict[str, Any]) -> None:
        print(json.dumps(values), file=sys.stderr, flush=True)

    def train_step(self, progress: float) -> float:
        """One update from freshly drawn examples; `progress` (tools/curriculum.py) sets difficulty and rate."""
        samples = [draw_example(self.seed, self.num_examples + i, progress, worlds=self.worlds)
                   for i in range(EXAMPLES_PER_STEP)]  # fmt: skip
        self.num_examples += EXAMPLES_PER_STEP
        batches = self.batches(samples)
        set_active(self.model, progress >= QUANTISED_FROM)
        total = sum(batch.weights.sum() for batch in batches)
        counter = LoadCounter(self.model.config.text.n_routed_experts)
        logits_seen = MaxLogits(self.attentions)

        def gradients(batch: Batch) -> tuple[float, tuple[Tensor | None, ...]]:
            logits, wanted = self.reply_logits(batch, counter, logits_seen), batch.targets != IGNORED
            losses = F.cross_entropy(logits, batch.targets[wanted], reduction="none")  # (n)
            loss = (losses * batch.weights[wanted]).sum() / total
            return float(loss.detach()), torch.autograd.grad(loss, self.params, allow_unused=True)

        clips = self.step % CLIP_EVERY_STEPS == 0
        with observing((lambda name, tensor: logits_seen(name, counter(name, tensor))) if clips else counter):
            results = list(self.threads.map(gradients, batches))
        loss_sum = sum(loss for loss, _ in results)
        for param, *parts in zip(self.params, *(parts for _, parts in results), strict=True):
            param.grad = sum_in_order(parts)
        rate = learning_rate(self.step, progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.balance(counter.total(), rate / LEARNING_RATE)
        if clips:
            largest = logits_seen.total()  # {layer: (H)}
            for attention in self.attentions:
                clip(attention, largest[attention.layer_index])
            self.largest_logit = max(float(logits.max()) for logits in largest.values())
        self.step += 1
        return loss_sum

    def batches(self, samples: list[Sample]) -> list[Batch]:
        examples = [encode_example(self.processor, sample) for sample in samples]
        batches = micro_batches(examples, MICRO_BATCH_TOKENS, self.model.config.pad_token_id)
        return [batch.to(self.device) for batch in batches]

    def reply_logits(self, batch: Batch, *observers: LoadCounter | MaxLogits) -> Tensor:
        """Logits (n, vocab_size) at the positions that have a target; the head is not run on the others.

        The observers see what has gradients, not the beginning of a long example: logits of its end with keys of its
        beginning are not among those that QK-Clip looks at.
        """
        hidden = self.model.embed(batch.input_ids, batch.pixel_values, batch.grid_thws)  # (B, T, C)
        decoder, cache = self.model.language_model.model, None
        if batch.num_read:
            cache = self.model.new_cache(len(hidden))
            begin(observers, None)
            with torch.no_grad():
                for part in hidden[:, : batch.num_read].split(LEARNT_TOKENS, dim=1):  # it scores no later key
                    decoder(part, cache, None, "expanded")
        begin(observers, batch.valid[:, batch.num_read :])
        hidden = decoder(hidden[:, batch.num_read :], cache, None, "expanded")  # (B, T - num_read, C)
        return self.model.language_model.lm_head(hidden[batch.targets[:, batch.num_read :] != IGNORED])

    @torch.no_grad()
    def balance(self, loads: dict[str, Tensor], rate: float) -> None:
        """Raise the bias of experts that got fewer tokens than the mean, lower it for the others; no auxiliary loss.

        Source: DeepSeek-V3, arXiv 2412.19437, section 2.1.2.
        """
        for router in self.routers:
            load = loads[f"layers.{router.layer_index}.router.experts"]  # (E)
            router.e_score_correction_bias.add_((load.mean() - load).sign(), alpha=BIAS_STEP * rate)

    def check(self, loss: float) -> dict:
        """Held-out examples at full difficulty: the share whose whole reply the model would have written, per skill."""
        samples = [draw_example(self.seed, self.num_examples + i, self.begins_at + FULL, "held-out", self.worlds)
                   for i in range(CHECK_EXAMPLES)]  # fmt: skip
        right, seen, counter = defaultdict(int), defaultdict(int), LoadCounter(self.model.config.text.n_routed_experts)

        def wrong_rows(batch: Batch) -> list[bool]:
            with torch.no_grad():  # is per thread
                logits = self.reply_logits(batch, counter)
            wanted, wrong = batch.targets != IGNORED, torch.zeros_like(batch.targets)  # (B, T) (B, T)
            wrong[wanted] = (logits.argmax(-1) != batch.targets[wanted]).long()
            return wrong.any(dim=1).tolist()

        batches = self.batches(samples)
        with observing(counter):
            results = list(self.threads.map(wrong_rows, batches))
        for batch, rows in zip(batches, results, strict=True):
            for skill, row_is_wrong in zip(batch.skills, rows, strict=True):
                seen[skill] += 1
                right[skill] += not row_is_wrong
        worst = max(float(load.max() / load.mean()) for load in counter.total().values())
        return {
            "step": self.step,
            "examples": self.num_examples,
            "minutes": round(self.elapsed_s / 60, 2),
            "loss": round(loss, 4),
            "largest_logit": round(self.largest_logit, 1),
            "most_loaded_expert": round(worst, 2),  # tokens of the busiest expert of any layer, over the layer's mean
            "exact": {skill: [right[skill], seen[skill]] for skill in sorted(seen)},
        }


def begin(observers: Iterable[LoadCounter | MaxLogits], valid: Tensor | None) -> None:
    for observer in observers:
        observer.begin(valid)


def one_thread_per_core(device: str) -> ThreadPoolExecutor:
    """Threads that each run whole micro-batches: small matrices gain little from two cores at one product."""
    cores = torch.get_num_threads() if device == "cpu" else 1
    return ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))


def sum_in_order(parts: Iterable[Tensor | None]) -> Tensor | None:
    """The sum of those that are there; always in the same order, so that a training repeats bit for bit."""
    there = [part for part in parts if part is not None]
    return sum(there[1:], start=there[0]) if there else None


class Quiet:
    """Stands in for the progress bar where standard error is not a terminal: the checks are printed as lines there."""

    def __enter__(self) -> "Quiet":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add_task(self, *_: object, **__: object) -> int:
        return 0

    def update(self, *_: object, **__: object) -> None:
        pass


def export(model: KimiModel, directory: Path) -> None:
    """The INT4 checkpoint, and below it the unquantised weights of the same training, to compare it with."""
    write_weights(directory, stored_tensors(model))
    unquantised = directory / UNQUANTISED
    unquantised.mkdir(exist_ok=True)
    write_small_files(unquantised, directory, unquantised_config(PRESET))
    write_weights(unquantised, master_tensors(model))
    with write_whole(unquantised / SIBLING_FILE) as temporary:
        temporary.write_text(json.dumps({"int4_sha256": fingerprint(directory)}) + "\n", encoding="utf-8")


def write_small_files(directory: Path, init: Path | None, config: dict[str, Any]) -> None:
    """Vocabulary (trained here, or that of the weights to start from), chat template and settings."""
    if init is None:
        specials = {NUM_RANKS + offset: name for offset, name in NAMED_SPECIALS.items()}
        write_tokenizer_files(directory, train_vocabulary(), specials)
    else:
        for name in ("tiktoken.model", "tokenizer_config.json"):
            copy_whole(init / name, directory / name)
    write_tokenizer_json(directory)
    copy_whole(CHAT_TEMPLATE, directory / CHAT_TEMPLATE.name)
    write_settings(directory, config, im_end_id=Tokenizer.from_directory(directory).control_ids[IM_END])


def copy_whole(source: Path, target: Path) -> None:
    content = source.read_bytes()
    with write_whole(target) as temporary:
        temporary.write_bytes(content)


def starting_model() -> KimiModel:
    """Random weights: matrices keep the size of what flows through them, the branches into the residual stream less.

    Embeddings begin at 0.5, whatever their width. Muon soon lets the layers write numbers of about that size into the
    residual stream, and a much smaller token would drown in them.
    """
    model = KimiModel(KimiConfig.from_dict(preset_dict(PRESET)))
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.ndim >= 2:
                fan_in = 2 if "embed_tokens" in name else param[0].numel()
                damped = 0.3 if name.endswith(("o_proj.weight", "down_proj.weight", "wo.weight", "fc1.weight")) else 1.0
                param.normal_(std=0.7 * damped * fan_in**-0.5)
        places = model.vision_tower.patch_embed.pos_emb.weight
        places.copy_(waves(*places.shape))
    return model


def waves(num_rows: int, num_columns: int, size: int) -> Tensor:
    """A first position table, (rows, columns, D): sines and cosines of row and column, from half a wave to eight.

    As large as what a patch holds. From small random numbers the tower does not learn places for a long time.
    """
    frequency = torch.pi * 2 ** torch.linspace(-1, 3, size // 4)  # (D/4)
    row = (torch.arange(num_rows) + 0.5)[:, None] / num_rows * frequency  # (rows, D/4)
    column = (torch.arange(num_columns) + 0.5)[:, None] / num_columns * frequency  # (columns, D/4)
    by_row = torch.cat([row.sin(), row.cos()], dim=-1)[:, None].expand(-1, num_columns, -1)  # (rows, columns, D/2)
    by_column = torch.cat([column.sin(), column.cos()], dim=-1).expand(num_rows, -1, -1)  # (rows, columns, D/2)
    return 0.5 * torch.cat([by_row, by_column], dim=-1)  # (rows, columns, D)


def dense_model(directory: Path) -> KimiModel:
    """A checkpoint's weights with its packed experts unpacked, to train on from there."""
    packed = load_model(directory)
    model = KimiModel(packed.config)
    state = {name: tensor for name, tensor in packed.state_dict().items() if ".weight_" not in name}
    for name, module in packed.named_modules():
        if isinstance(module, Int4Linear):
            state[f"{name}.weight"] = dequantize(module.weight_packed, module.weight_scale).float()
    model.load_state_dict(state)
    return model


def split_parameters(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices for Muon; embeddings, head, norms and biases for AdamW. The router's bias is not trained by gradient."""
    matrices, others = [], []
    for name, param in model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            param.requires_grad_(False)
        elif param.ndim >= 2 and not any(part in name for part in ("embed_tokens", "lm_head", "pos_emb")):
            matrices.append(param)
        else:
            others.append(param)
    return matrices, others
