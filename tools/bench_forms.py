"""Measure the forms between which the optimized model chooses on a CPU, side by side: what its choices rest on.

One table per kind of work, each form in turn, medians of the rounds. Weights rotate through more than a cache holds.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import OneLineParser, check_writable, run, write_whole
from reference.terminal import progress

from .bench import machine, memory_bandwidth, seconds, summary, wait_until_quiet

if TYPE_CHECKING:
    from torch import Tensor

    from optimized.moe import Int4Experts

EXAMPLES = """examples:
  python -m tools.bench_forms
  python -m tools.bench_forms --only experts --json forms.json
"""

KINDS = ("product", "experts", "grouped", "prefill", "decode")
ROTATED_BYTES = 400e6  # of weights that take turns
SIZES = {"mid": (1024, 512, 64), "full": (7168, 2048, 16)}  # hidden_size, moe_intermediate_size, experts in memory
ROUNDS, WARM_UPS = 15, 2


@dataclass
class Work:
    """One thing to compute in several forms. bytes_moved: of weights or cache, at the least."""

    kind: str
    what: str
    forms: dict[str, Callable[[], object]]
    bytes_moved: dict[str, float]


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.bench_forms", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", choices=KINDS, action="append", help="this kind of work alone; repeatable")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report there, too")
    args = parser.parse_args(argv)
    if args.json:
        check_writable(args.json)  # minutes of measuring come first
    report = machine(wait_until_quiet())
    with progress("measuring", quiet=False):
        report["bandwidth_gb_s"] = memory_bandwidth()
        report["works"] = [measure(work) for kind in args.only or KINDS for work in MAKERS[kind]()]
    if args.json:
        with write_whole(args.json) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{report['cpu']}, {report['threads']} threads, torch {report['torch']}, "
          f"memory read at {report['bandwidth_gb_s']:.1f} GB/s")  # fmt: skip
    for work in report["works"]:
        print(f"\n{work['kind']}: {work['what']}")
        for name, form in work["forms"].items():
            print(f"  {name:<34}{form['ms']['median']:>10.3f} ms{form['gb_per_s']:>8.1f} GB/s")
    return 0


def measure(work: Work) -> dict[str, Any]:
    import torch

    times: dict[str, list[float]] = {name: [] for name in work.forms}
    with torch.inference_mode():
        for i in range(ROUNDS + WARM_UPS):
            for name, form in work.forms.items():
                elapsed = seconds(form)
                times[name] += [1e3 * elapsed] if i >= WARM_UPS else []
    forms = {
        name: {"ms": summary(found), "gb_per_s": work.bytes_moved[name] / summary(found)["median"] / 1e6}
        for name, found in times.items()
    }
    return {"kind": work.kind, "what": work.what, "forms": forms}


def products() -> Iterator[Work]:
    """One token times a matrix: the matrix library against a sum of products that Inductor generates."""
    import torch
    import torch.nn.functional as F

    def as_sum(hidden: "Tensor", weight: "Tensor") -> "Tensor":
        return (weight.float() * hidden.float()).sum(-1).to(hidden.dtype)

    generated = torch.compile(as_sum, dynamic=False)
    for (inputs, outputs), dtype in itertools.product(((1024, 1024), (7168, 2048)), (torch.bfloat16, torch.float32)):
        hidden = torch.randn(1, inputs).to(dtype)  # (1, I)
        nbytes = inputs * outputs * dtype.itemsize
        turns = rotating(lambda i=inputs, o=outputs, d=dtype: torch.randn(o, i).to(d), nbytes)  # each (O, I)
        forms = {
            "matrix library": lambda hidden=hidden, turns=turns: F.linear(hidden, next(turns)),
            "generated sum": lambda hidden=hidden, turns=turns: generated(hidden, next(turns)),
        }
        kind = str(dtype).removeprefix("torch.")
        yield Work("product", f"one token, {inputs} x {outputs}, {kind}", forms, dict.fromkeys(forms, nbytes))


def expert_stacks(hidden_size: int, width: int, num_experts: int) -> "tuple[Int4Experts, Int4Experts]":
    """The same random experts as tiles and as lanes."""
    import torch

    from optimized.moe import Int4Experts

    stacks = []
    for _ in range(2):
        torch.manual_seed(0)
        experts = Int4Experts(num_experts, hidden_size, width, torch.bfloat16)
        for stack in (experts.gate_up, experts.down):
            words = torch.randint(-(2**31), 2**31 - 1, stack.weight.shape, dtype=torch.int32)  # (E, O, w)
            stack.take(words, torch.full_like(stack.scale, 2.0**-9), torch.bfloat16)
        stacks.append(experts)
    stacks[1].use_generated()
    return stacks[0], stacks[1]


def experts() -> Iterator[Work]:
    """The routed experts of one layer for one token and for eight, each with eight of them."""
    import torch

    from optimized import moe

    for size, (hidden_size, width, num_experts) in SIZES.items():
        tiles, lanes = expert_stacks(hidden_size, width, num_experts)
        loop, gathered = (moe.DenseExperts(num_experts, hidden_size, width).to(torch.bfloat16) for _ in range(2))
        for parameter in loop.parameters():
            parameter.data.normal_(std=0.02)
        gathered.load_state_dict(loop.state_dict())
        gathered.use_generated()
        for num_tokens in (1, 8):
            hidden = torch.randn(num_tokens, hidden_size).bfloat16()  # (n, C)
            weights = torch.rand(num_tokens, 8)  # (n, K)

            def ids(num_tokens: int = num_tokens, num_experts: int = num_experts) -> "Tensor":
                return torch.rand(num_tokens, num_experts).argsort(-1)[:, :8]  # (n, 8)

            named = {"bfloat16, one by one": loop, "bfloat16, generated": gathered,
                     "INT4 tiles, PyTorch's operator": tiles, "INT4 lanes, generated": lanes}  # fmt: skip
            forms = {name: lambda module=module, hidden=hidden, weights=weights, ids=ids: module(hidden, weights, ids())
                     for name, module in named.items()}  # fmt: skip
            read = min(8 * num_tokens, num_experts) * 3 * hidden_size * width
            moved = {name: read * (16 if "bfloat16" in name else 4.5) / 8 for name in forms}
            yield Work("experts", f"{size}: {num_tokens} tokens x 8 of {num_experts} experts, {hidden_size} x {width}",
                       forms, moved)  # fmt: skip


def grouped() -> Iterator[Work]:
    """One expert over many tokens: unpack and multiply, against weights that are not packed."""
    import torch
    import torch.nn.functional as F

    from optimized import int4

    hidden_size, width, num_experts = SIZES["mid"]
    tiles, lanes = expert_stacks(hidden_size, width, num_experts)
    dense = torch.randn(num_experts, 2 * width, hidden_size).bfloat16()  # (E, 2W, C)
    for num_tokens in (4, 16, 64, 256):
        hidden, turn = torch.randn(num_tokens, hidden_size).bfloat16(), itertools.cycle(range(num_experts))  # (n, C)

        def packed(module: "Int4Experts", hidden: "Tensor" = hidden, turn: Iterator[int] = turn) -> "Tensor":
            i = next(turn)
            return int4.multiply(hidden, module.gate_up.weight[i], module.gate_up.scale[i], False)

        forms = {
            "bfloat16": lambda hidden=hidden, turn=turn: F.linear(hidden, dense[next(turn)]),
            "INT4 tiles": lambda packed=packed: packed(tiles),
            "INT4 lanes": lambda packed=packed: packed(lanes),
        }
        weights = 2 * width * hidden_size
        moved = {"bfloat16": 2 * weights, "INT4 tiles": 0.5625 * weights, "INT4 lanes": 0.5625 * weights}
        yield Work("grouped", f"{num_tokens} tokens, one expert {hidden_size} x {2 * width}", forms, moved)


def prefill() -> Iterator[Work]:
    """Expanded attention over a prompt, 16 heads of 192 and 128."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    from optimized import attention_products
    from optimized.attention import block_mask

    start = torch.zeros(1, dtype=torch.int64)  # (1)
    for num_tokens in (512, 2048):
        flex = torch.compile(flex_attention, dynamic=False)
        query, key, value = (torch.randn(1, 16, num_tokens, d).bfloat16() for d in (192, 192, 128))  # (1, H, T, D or V)
        mask = block_mask(start, start, num_tokens, num_tokens)
        rows = query, key, value, start, start, 0.07
        forms = {
            "products in blocks": lambda rows=rows: attention_products.in_blocks(*rows, False),
            "products in blocks, generated": lambda rows=rows: attention_products.in_blocks(*rows, True),
            "PyTorch's fused attention": lambda rows=rows: attention_products.fused(*rows),
            "FlexAttention, compiled": lambda qkv=rows[:3], m=mask, flex=flex: flex(*qkv, block_mask=m, scale=0.07),
        }
        nbytes = query.nbytes + key.nbytes + value.nbytes
        yield Work("prefill", f"{num_tokens} tokens", forms, dict.fromkeys(forms, nbytes))


def decode() -> Iterator[Work]:
    """Absorbed attention of one token on a cache of 576 numbers a token."""
    import torch

    from optimized import attention_products, flex_decode

    def by_flex(query: "Tensor", keys: "Tensor", start: "Tensor", padding: "Tensor") -> "Tensor":
        return flex_decode.attend(query, keys, flex_decode.decode_mask(start, padding, keys.shape[1]), 512, 0.1)

    generated = torch.compile(by_flex, dynamic=False)
    for num_heads, num_slots in ((16, 512), (16, 4096), (64, 4096)):
        keys, query = torch.randn(1, num_slots, 576).bfloat16(), torch.randn(1, 1, num_heads, 576).bfloat16()
        start, padding = torch.tensor([num_slots - 1]), torch.tensor([0])  # (1) (1)
        row = query[0], keys[0], num_slots - 1, 0, 512, 0.1
        forms = {
            "two products": lambda row=row: attention_products.one_row(*row),
            "FlexAttention, compiled": lambda q=query, k=keys, s=start, p=padding: generated(q, k, s, p),
        }
        yield Work("decode", f"{num_heads} heads, {num_slots} tokens", forms, dict.fromkeys(forms, keys.nbytes))


MAKERS: dict[str, Callable[[], Iterator[Work]]] = {
    "product": products, "experts": experts, "grouped": grouped, "prefill": prefill, "decode": decode,
}  # fmt: skip


def rotating(make: "Callable[[], Tensor]", nbytes: int) -> "Iterator[Tensor]":
    """Tensors in turn, as many as exceed what a cache holds."""
    return itertools.cycle([make() for _ in range(max(2, int(ROTATED_BYTES / nbytes)))])


if __name__ == "__main__":
    raise SystemExit(run(main))
