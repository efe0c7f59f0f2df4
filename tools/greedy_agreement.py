"""Greedy answers of two models to the same held-out prompts: how many are equal, and how near the call was where not.

`python -m tools.parity --prompts N` prints it. A prompt is a question from the small model's worlds, and text, pictures
and videos take turns. An answer counts as equal only if every token is, and if both end by a stop token or neither.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from optimized.generation import MAX_ROWS, Batch
from optimized.generation import generate as generate_fast
from optimized.model import load_model, set_attention
from reference.generation import Generated, generate
from reference.int4 import set_int4_product
from reference.model import load_model as load_reference
from reference.prompt import Processor, Prompt
from reference.stages import observing
from reference.terminal import progress

from .worlds.sample import draw

# n tokens of an answer, the one that ends it included   R rows that still run   V vocab_size

KINDS = {"text": ("numbers", "self", "outside"), "pictures": ("pictures",), "videos": ("videos",)}
SEED, MAX_NEW_TOKENS = 0, 120
# Alone and in a batch, in float32: relative L2 between the logits of all answers, and between those of any one answer,
# which sharp attention may carry as far as any other two float32 runs.
BATCH_TOLERANCE, ANSWER_TOLERANCE = 1e-6, 1e-5


@dataclass(frozen=True)
class Question:
    kind: str
    skill: str
    index: int  # draws it again
    prompt: Prompt


@dataclass(frozen=True)
class Answer:
    """A reply with the logits (n, V) that each of its tokens was chosen from."""

    reply: Generated
    logits: Tensor


@dataclass(frozen=True)
class Difference:
    """Where two answers part. Both gaps are of the logits of the one that is the measure."""

    question: int
    skill: str
    position: int
    gap: float  # its own token above the other answer's
    top_two_gap: float  # its own token above its second best


@dataclass(frozen=True)
class Comparison:
    """All answers of `model` against those of `measure`."""

    model: str
    measure: str
    kinds: list[str]  # of every question
    differences: list[Difference]

    @property
    def num_identical(self) -> int:
        return len(self.kinds) - len(self.differences)

    def identical_by_kind(self) -> dict[str, str]:
        different = [self.kinds[one.question] for one in self.differences]
        totals = {kind: self.kinds.count(kind) for kind in KINDS}
        return {kind: f"{total - different.count(kind)} of {total}" for kind, total in totals.items()}

    def summary(self) -> dict[str, tuple[float, float, float]]:
        """Smallest, median and largest of each figure; empty if nothing differs."""
        names = ("position", "gap", "top_two_gap") if self.differences else ()
        columns = {name: [getattr(one, name) for one in self.differences] for name in names}
        return {name: (min(values), median(values), max(values)) for name, values in columns.items()}


@dataclass(frozen=True)
class Alone:
    """Each prompt alone against the same prompt in a batch, by the optimized model. Errors are relative L2 of logits.

    Single tokens are further apart than whole answers, for the logits of some are small.
    """

    num_identical: int  # answers with the same likeliest token at every place
    all_answers: float  # over the logits of all tokens of all answers
    worst_answer: float  # over the logits of all tokens of one answer
    worst_token: float
    # The worst answer's distances to the reference in float64: what float32 itself costs there. Not in bfloat16.
    worst_from_float64: dict[str, float]


@dataclass(frozen=True)
class GreedyAgreement:
    """The first comparison is that of the two models; in bfloat16 others follow, to judge it by."""

    comparisons: list[Comparison]
    alone: Alone
    is_exact: bool  # float32, where nothing may differ

    @property
    def failed(self) -> bool:
        alone = self.alone
        is_same = self.comparisons[0].num_identical == alone.num_identical == len(self.comparisons[0].kinds)
        is_near = alone.all_answers <= BATCH_TOLERANCE and alone.worst_answer <= ANSWER_TOLERANCE
        return self.is_exact and not (is_same and is_near)

    def as_document(self) -> dict[str, Any]:
        comparisons = [
            {"model": one.model, "measure": one.measure, "identical": one.num_identical,
             "identical_by_kind": one.identical_by_kind(), "min_median_max": one.summary(),
             "differences": [asdict(difference) for difference in one.differences]}
            for one in self.comparisons
        ]  # fmt: skip
        return {
            "prompts": len(self.comparisons[0].kinds), "max_new_tokens": MAX_NEW_TOKENS, "rows": MAX_ROWS,
            "comparisons": comparisons, "alone_and_in_a_batch": asdict(self.alone),
        }  # fmt: skip

    def print(self) -> None:
        num_prompts = len(self.comparisons[0].kinds)
        print(f"\ngreedy answers to {num_prompts} held-out prompts, at most {MAX_NEW_TOKENS} tokens each")
        for one in self.comparisons:
            by_kind = ", ".join(f"{kind} {count}" for kind, count in one.identical_by_kind().items())
            print(f"{one.model} against {one.measure}: {one.num_identical} of {num_prompts} identical ({by_kind})")
            for name, values in one.summary().items():
                words = {"position": "token", "gap": "logit gap", "top_two_gap": "gap of the best two"}[name]
                low, middle, high = values
                print(f"    first difference, {words}: min {low:.3g}, median {middle:.3g}, max {high:.3g}")
        alone = self.alone
        print(f"each prompt alone and in a batch of up to {MAX_ROWS}, given the same tokens: {alone.num_identical} of "
              f"{num_prompts} would choose the same; relative L2 of the logits: "
              f"all answers {alone.all_answers:.1e}, worst answer {alone.worst_answer:.1e}, "
              f"worst token {alone.worst_token:.1e}")
        if alone.worst_from_float64:
            distances = ", ".join(f"{name} {error:.1e}" for name, error in alone.worst_from_float64.items())
            print(f"the worst of these answers, relative L2 to the reference in float64: {distances}")


def measure(
    directory: Path, num_prompts: int, dtype_name: str, device: str, attention: str, quiet: bool
) -> GreedyAgreement:
    """Let both models answer, and in bfloat16 the reference in float32 as well. Raises as the loaders do."""
    processor = Processor.from_directory(directory)
    questions = held_out_questions(processor, num_prompts)
    prompts, dtype = [question.prompt for question in questions], getattr(torch, dtype_name)
    plain, fast = load_reference(directory, dtype, device), load_model(directory, dtype, device)
    set_attention(fast, attention)
    for model in (plain, fast):
        set_int4_product(model, "exact")
    settings = {
        "max_new_tokens": MAX_NEW_TOKENS, "temperature": 0, "top_p": 1, "seed": 0, "stop_ids": processor.stop_ids
    }  # fmt: skip
    with progress(f"the optimized model answers {num_prompts} prompts", quiet):
        found = generate_fast(fast, prompts, **settings)
    with progress(f"the reference answers {num_prompts} prompts", quiet):
        expected = answer(plain, prompts, settings)
    references = None
    if dtype == torch.float32:
        truth = load_reference(directory, torch.float64, device)
        set_int4_product(truth, "exact")
        references = plain, truth
    with progress(f"the optimized model answers {num_prompts} prompts one by one", quiet):
        alone = compare_alone(fast, prompts, found, references)

    def compared(model: str, replies: Sequence[Generated], measure: str, answers: Sequence[Answer]) -> Comparison:
        differences = differing(questions, replies, answers, processor.stop_ids)
        return Comparison(model, measure, [question.kind for question in questions], differences)

    comparisons = [compared("optimized", found, "the reference", expected)]
    if dtype != torch.float32:
        exact = load_reference(directory, torch.float32, device)
        set_int4_product(exact, "exact")
        with progress(f"the reference answers {num_prompts} prompts in float32", quiet):
            truth = answer(exact, prompts, settings)
        replies = [one.reply for one in expected]
        comparisons.append(compared("the reference", replies, "the reference in float32", truth))
        comparisons.append(compared("optimized", found, "the reference in float32", truth))
    return GreedyAgreement(comparisons, alone, is_exact=dtype == torch.float32)


def held_out_questions(processor: Processor, num_prompts: int) -> list[Question]:
    """Text, pictures and videos in turn, and the worlds of each kind in turn; with and without thinking."""
    questions = []
    for i in range(num_prompts):
        kind = list(KINDS)[i % len(KINDS)]
        index = i // len(KINDS)
        sample = draw(KINDS[kind][index % len(KINDS[kind])], SEED, index, "held-out")
        prompt = processor.prompt(sample.messages, thinking=sample.thinking)
        questions.append(Question(kind, sample.skill, index, prompt))
    return questions


def answer(model: nn.Module, prompts: Sequence[Prompt], settings: dict[str, Any]) -> list[Answer]:
    """What the reference says, MAX_ROWS prompts at a time, with the logits of its very run."""
    answers: list[Answer] = []
    for start in range(0, len(prompts), MAX_ROWS):
        steps: list[Tensor] = []

        def observe(name: str, tensor: Tensor, steps: list[Tensor] = steps) -> Tensor:
            if name == "logits":
                steps.append(tensor[:, -1].float().cpu())  # (R, V)
            return tensor

        with observing(observe):
            replies = generate(model, prompts[start : start + MAX_ROWS], **settings)
        # Rows keep their order, and one that has ended takes no part in later steps.
        rows: list[list[Tensor]] = [[] for _ in replies]
        for position, logits in enumerate(steps):
            running = [row for row, reply in zip(rows, replies, strict=True) if reply.num_sampled > position]
            for row, row_logits in zip(running, logits, strict=True):
                row.append(row_logits)
        answers += [Answer(reply, torch.stack(row)) for reply, row in zip(replies, rows, strict=True)]
    return answers


def differing(
    questions: Sequence[Question], replies: Sequence[Generated], answers: Sequence[Answer], stop_ids: frozenset[int]
) -> list[Difference]:
    """The first difference of each reply from the answer that is its measure, where there is one."""
    found = []
    for i, (question, reply, measure) in enumerate(zip(questions, replies, answers, strict=True)):
        if reply == measure.reply:
            continue
        pairs = enumerate(zip(reply.ids, measure.reply.ids, strict=False))
        shorter = min(len(reply.ids), len(measure.reply.ids))
        position = next((at for at, (token, expected) in pairs if token != expected), shorter)
        logits = measure.logits[position]  # (V)
        # A reply does not say which stop token ended it: the likeliest.
        candidates = reply.ids[position : position + 1] or list(stop_ids)
        other = logits[candidates].max()
        best, second = logits.topk(2).values
        found.append(Difference(i, question.skill, position, float(best - other), float(best - second)))
    return found


def compare_alone(
    model: nn.Module, prompts: Sequence[Prompt], replies: Sequence[Generated],
    references: tuple[nn.Module, nn.Module] | None,
) -> Alone:  # fmt: skip
    """Give all the tokens of the batched replies, so that one difference does not become many.

    references: in float32 and in float64, to say of the worst answer what float32 itself costs.
    """
    together = replay(model, prompts, replies, MAX_ROWS)
    alone = [replay(model, prompts[i : i + 1], replies[i : i + 1], max_rows=1)[0] for i in range(len(prompts))]
    of_answers = [relative(*pair) for pair in zip(together, alone, strict=True)]
    of_tokens = [relative(*pair) for pair in zip(torch.cat(together), torch.cat(alone), strict=True)]
    worst = int(torch.tensor(of_answers).argmax())  # NaN, if there is one
    from_float64 = {}
    if references:
        plain, exact = (read_at_once(reference, prompts[worst], replies[worst]) for reference in references)
        runs = {"alone": alone[worst], "in a batch": together[worst], "the reference, all tokens at once": plain}
        from_float64 = {name: relative(logits, exact) for name, logits in runs.items()}
    return Alone(
        num_identical=sum(torch.equal(a.argmax(-1), b.argmax(-1)) for a, b in zip(alone, together, strict=True)),
        all_answers=relative(torch.cat(together), torch.cat(alone)), worst_answer=of_answers[worst],
        worst_token=float(torch.tensor(of_tokens).max()), worst_from_float64=from_float64,
    )  # fmt: skip


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 over whole tensors."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@torch.inference_mode()
def read_at_once(model: nn.Module, prompt: Prompt, reply: Generated) -> Tensor:
    """Logits (n, V) of a reply when prompt and reply are given in one forward, without a cache."""
    device = next(model.parameters()).device
    input_ids = torch.tensor([prompt.input_ids + reply.ids], device=device)  # (1, T + n) or one less
    pixels, grids = (None if array is None else torch.from_numpy(array).to(device)
                     for array in (prompt.pixel_values, prompt.grid_thws))  # fmt: skip
    first = len(prompt.input_ids) - 1
    logits = model(input_ids, pixel_values=pixels, grid_thws=grids)  # (1, T + n, V)
    return logits[0, first : first + reply.num_sampled].cpu()


@torch.inference_mode()
def replay(
    model: nn.Module, prompts: Sequence[Prompt], replies: Sequence[Generated], max_rows: int
) -> list[Tensor]:
    """Logits (n, V) of each reply when its tokens are given, in a batch whose free rows are filled at once."""
    pairs = zip(prompts, replies, strict=True)
    batch = Batch(model, max_rows, max(len(prompt.input_ids) + reply.num_sampled for prompt, reply in pairs))
    seen: list[list[Tensor]] = [[] for _ in prompts]
    waiting = list(range(len(prompts)))
    while waiting or batch.keys:
        while waiting and len(batch.keys) < max_rows:
            key = waiting.pop(0)
            seen[key].append(batch.join(key, prompts[key]).float().cpu())  # (V)
        for key in list(batch.keys):
            if len(seen[key]) == replies[key].num_sampled:
                batch.leave(key)
        keys = list(batch.keys)
        if keys:
            logits = batch.step([replies[key].ids[len(seen[key]) - 1] for key in keys]).float().cpu()  # (R, V)
            for key, row_logits in zip(keys, logits, strict=True):
                seen[key].append(row_logits)
    return [torch.stack(rows) for rows in seen]
