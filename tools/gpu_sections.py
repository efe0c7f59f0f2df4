"""What `tools.gpu_check` measures, section by section; on a CPU with small sizes the same functions are tested.

Weights and inputs are random: zeros run faster than anything real. Each call of a timed function gets the next of
several buffers, together larger than the cache of the chip. On CUDA the calls are recorded as one graph and its replays
timed with events, so that no launch by the host is in the figure.
"""

import argparse
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from optimized import attention_products, cuda_experts, flex_decode
from optimized.attention import block_mask
from optimized.capability import GATHERED_ON_CUDA
from optimized.decoder import LanguageModel
from optimized.generated import on_cuda
from optimized.int4_words import gathered_matvec
from optimized.model import compile_steps, use_int4_experts
from optimized.vision import VisionTower
from reference.config import INT4_GROUP_SIZE, KimiConfig
from reference.generate import SHIPPED_MODEL
from reference.int4 import dequantize
from reference.presets import preset_dict

from . import parity

# n tokens   C hidden_size   K num_experts_per_tok   E n_routed_experts   W moe_intermediate_size   B batch
# H num_attention_heads   R kv_lora_rank   P qk_rope_head_dim   S slots of the cache   O outputs   I inputs

INT4_BYTES = 4.5 / 8  # of a weight: four bits, and a bfloat16 scale for every 32
REPLAYS = 5
ROOT = Path(__file__).parents[1]
TESTS_TIMEOUT_S = 240


@dataclass(frozen=True)
class Sizes:
    """What is measured. The defaults are the published model's own; tests on a CPU use small ones."""

    preset: str = "kimi-k2.5"
    dtype: torch.dtype = torch.bfloat16
    copy_bytes: int = 2**31
    product: int = 8192  # side of the square matrices whose product is the arithmetic ceiling
    cache_bytes: int = 2**28  # buffers in rotation are together larger than this
    grouped_tokens: tuple[int, ...] = (8, 64, 256, 2048)
    batches: tuple[int, ...] = (1, 8, 64)
    contexts: tuple[int, ...] = (4096, 32768, 131072)
    prefill_tokens: int = 2048
    grids: tuple[tuple[tuple[int, int, int], int], ...] = (((1, 16, 16), 1), ((1, 16, 16), 16), ((1, 64, 64), 1))
    calls: int = 20  # of a timed function in one graph

    @functools.cached_property
    def config(self) -> KimiConfig:
        """The preset with one mixture-of-experts layer and a small vocabulary, whose head would hide the layer."""
        raw = preset_dict(self.preset)
        raw["text_config"] |= {"num_hidden_layers": 1, "first_k_dense_replace": 0, "vocab_size": 1024,
                               "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
        for key in ("media_placeholder_token_id", "pad_token_id", "bos_token_id", "eos_token_id"):
            raw[key] = 0
        return KimiConfig.from_dict(raw)


class Bench:
    """The device, the clock, and the rows of the section that runs."""

    def __init__(self, device: torch.device, sizes: Sizes, log: Callable[[str], None]):
        self.device, self.sizes, self.log = device, sizes, log
        self.rows: list[dict[str, Any]] = []
        self.is_cuda = device.type == "cuda"

    def describe(self) -> dict[str, Any]:
        """The machine, by what it can do."""
        properties = torch.cuda.get_device_properties(self.device)
        import triton

        return {
            "device": properties.name, "memory_gib": properties.total_memory / 2**30, "torch": torch.__version__,
            "triton": triton.__version__, "sizes": {k: str(v) for k, v in asdict(self.sizes).items()},
        }  # fmt: skip

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.sizes.dtype, device=self.device)

    def copies(self, nbytes: int) -> int:
        """How many buffers of this size no cache of the chip holds together."""
        return max(2, -(-self.sizes.cache_bytes // nbytes))

    def seconds(self, work: Callable[[int], object], graphed: bool = True) -> float:
        """Median seconds of one call of work(i), i counting up so that it can choose its buffers."""
        calls = self.sizes.calls
        with torch.inference_mode():
            for i in range(3):
                work(i)
            if not self.is_cuda:
                return statistics.median(self._wall_clock(work, calls) for _ in range(REPLAYS))
            run = functools.partial(self._all, work, calls)
            if graphed:
                graph = torch.cuda.CUDAGraph()
                torch.cuda.synchronize()
                with torch.cuda.graph(graph):
                    run()
                run = graph.replay
                run()
            return statistics.median(self._events(run) / calls for _ in range(REPLAYS))

    @staticmethod
    def _all(work: Callable[[int], object], calls: int) -> None:
        for i in range(calls):
            work(i)

    def _wall_clock(self, work: Callable[[int], object], calls: int) -> float:
        start = time.perf_counter()
        self._all(work, calls)
        return (time.perf_counter() - start) / calls

    @staticmethod
    def _events(run: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def row(self, name: str, seconds: float, nbytes: float = 0, flops: float = 0, **more: Any) -> None:
        """Keep and print one figure with its bound: bytes over the copy bandwidth, or arithmetic over the ceiling."""
        bound = max(nbytes / self.bandwidth, flops / self.arithmetic)
        entry = {"name": name, "us": seconds * 1e6, "bound_us": bound * 1e6, "share": bound / seconds, **more}
        if nbytes:
            entry["gb_s"] = nbytes / seconds / 1e9
        if flops:
            entry["tflop_s"] = flops / seconds / 1e12
        self.rows.append(entry)
        rates = "  ".join(f"{entry[key]:.4g} {unit}" for key, unit in (("gb_s", "GB/s"), ("tflop_s", "TFLOP/s"))
                          if key in entry)  # fmt: skip
        self.log(f"  {name:<44} {entry['us']:>10.1f} us  {entry['share']:>5.0%} of the bound  {rates}")

    def note(self, text: str) -> None:
        self.rows.append({"note": text})
        self.log(f"  {text}")

    def release(self) -> None:
        """Give back what the last section used, but for the experts that the next one reads."""
        if self.is_cuda:
            torch.cuda.empty_cache()

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0] if self.is_cuda else 2**30

    @functools.cached_property
    def bandwidth(self) -> float:
        """Bytes per second of a large copy, read and written."""
        source = torch.randint(-(2**31), 2**31 - 1, (self.sizes.copy_bytes // 4,), dtype=torch.int32,
                               device=self.device)  # fmt: skip
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.seconds(lambda i: target.copy_(source))

    @functools.cached_property
    def arithmetic(self) -> float:
        """Operations per second of a large product."""
        side = self.sizes.product
        left, right = self.random(side, side), self.random(side, side)
        return 2 * side**3 / self.seconds(lambda i: left @ right)

    @functools.cached_property
    def stacks(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A layer's experts: words (E, 2W, C/8) and scales (E, 2W, C/32) of gate and up, and the same of down."""
        text = self.sizes.config.text
        num_experts, hidden, width = text.n_routed_experts, text.hidden_size, text.moe_intermediate_size
        return *self.packed(num_experts, 2 * width, hidden), *self.packed(num_experts, hidden, width)

    def packed(self, num_experts: int, num_outputs: int, num_inputs: int) -> tuple[Tensor, Tensor]:
        """Random words (E, O, I/8) and scales (E, O, I/32)."""
        words = torch.randint(-(2**31), 2**31 - 1, (num_experts, num_outputs, num_inputs // 8), dtype=torch.int32,
                              device=self.device)  # fmt: skip
        scale = torch.rand(num_experts, num_outputs, num_inputs // INT4_GROUP_SIZE, device=self.device)
        return words, ((scale + 0.5) / 8 * num_inputs**-0.5).to(torch.bfloat16)

    def routing(self, num_tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (n, C), weights (n, K) and distinct random experts (n, K) of each."""
        text = self.sizes.config.text
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(num_tokens, text.n_routed_experts, generator=generator)  # (n, E)
        expert_ids = scores.topk(text.num_experts_per_tok).indices.to(self.device)  # (n, K)
        weights = torch.rand(expert_ids.shape, device=self.device)  # (n, K)
        return self.random(num_tokens, text.hidden_size), weights, expert_ids


def expert_weights(config: KimiConfig) -> int:
    """Weights of one routed expert."""
    return 3 * config.text.hidden_size * config.text.moe_intermediate_size


def distinct(config: KimiConfig, num_tokens: int) -> float:
    """How many different experts so many tokens are expected to choose."""
    num_experts, chosen = config.text.n_routed_experts, config.text.num_experts_per_tok
    return num_experts * (1 - (1 - chosen / num_experts) ** num_tokens)


def attention_weights(config: KimiConfig) -> int:
    text = config.text
    heads = text.num_attention_heads
    query = text.q_lora_rank * (text.hidden_size + heads * (text.qk_nope_head_dim + text.qk_rope_head_dim))
    latent = text.hidden_size * (text.kv_lora_rank + text.qk_rope_head_dim)
    expanded = text.kv_lora_rank * heads * (text.qk_nope_head_dim + text.v_head_dim)
    return query + latent + expanded + heads * text.v_head_dim * text.hidden_size


def layer_bytes(config: KimiConfig, batch: int, context: int, expert_bytes: float) -> float:
    """The least that a decode step of one layer reads: bfloat16 but for the routed experts and the float32 gate."""
    text = config.text
    shared = expert_weights(config) * text.n_shared_experts
    cache = batch * context * (text.kv_lora_rank + text.qk_rope_head_dim)
    routed = distinct(config, batch) * expert_weights(config) * expert_bytes
    return 2 * (attention_weights(config) + shared + text.n_routed_experts * text.hidden_size + cache) + routed


def layer_flops(config: KimiConfig, num_tokens: int) -> float:
    """Arithmetic of one layer for a prompt of so many tokens: two per weight and token, and causal attention."""
    text = config.text
    experts = expert_weights(config) * (text.num_experts_per_tok + text.n_shared_experts)
    per_token = attention_weights(config) + experts + text.n_routed_experts * text.hidden_size
    per_pair = text.num_attention_heads * (text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim)
    return 2.0 * per_token * num_tokens + 2.0 * per_pair * num_tokens**2 / 2


# --- sections ---


def tests(bench: Bench) -> None:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=short"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=TESTS_TIMEOUT_S)
    bench.log(outcome.stdout)
    bench.rows.append({"name": "tests", "summary": outcome.stdout.strip().rpartition("\n")[2]})
    if outcome.returncode != 0:
        raise AssertionError(f"{bench.rows[-1]['summary']} {outcome.stderr[-1000:]}")


def ceilings(bench: Bench) -> None:
    """What this card can do: a large copy, a large product."""
    nbytes, side = 2 * bench.sizes.copy_bytes, bench.sizes.product
    bench.row("copy", nbytes / bench.bandwidth, nbytes=nbytes)
    bench.row(f"product of {side} x {side}", 2 * side**3 / bench.arithmetic, flops=2 * side**3)


def experts(bench: Bench) -> None:
    """Experts of single tokens: INT4 read in place, and the same in bfloat16."""
    config = bench.sizes.config
    batches = [n for n in bench.sizes.batches if n * config.text.num_experts_per_tok <= GATHERED_ON_CUDA]
    for num_tokens in batches:
        _experts(bench, "INT4", num_tokens, cuda_experts.int4_gathered, (*bench.stacks, False), INT4_BYTES)
    text = config.text
    needed = text.n_routed_experts * expert_weights(config) * bench.sizes.dtype.itemsize
    if needed * 1.1 > bench.free_bytes():
        bench.note(f"dense experts left out: {needed / 2**30:.0f} GiB, {bench.free_bytes() / 2**30:.0f} GiB are free")
        return
    gate_up = bench.random(text.n_routed_experts, 2 * text.moe_intermediate_size, text.hidden_size)
    down = bench.random(text.n_routed_experts, text.hidden_size, text.moe_intermediate_size)
    for num_tokens in batches:
        width = bench.sizes.dtype.itemsize
        _experts(bench, "dense", num_tokens, cuda_experts.dense_gathered, (gate_up, down), width)


def _experts(
    bench: Bench, kind: str, num_tokens: int, function: Callable, stacks: tuple, weight_bytes: float
) -> None:
    routings = [bench.routing(num_tokens, seed) for seed in range(bench.sizes.calls)]
    seconds = bench.seconds(lambda i: function(*routings[i % len(routings)], *stacks))
    read = sum(len(routing[2].unique()) for routing in routings) / len(routings)
    nbytes = read * expert_weights(bench.sizes.config) * weight_bytes
    bench.row(f"{kind} experts, {num_tokens} tokens", seconds, nbytes=nbytes, experts_read=read)


def grouped(bench: Bench) -> None:
    """Tokens sorted by expert: one product over packed blocks, against unpacking each expert for the library."""
    config, (gate_up, gate_up_scale, down, down_scale) = bench.sizes.config, bench.stacks
    products = (gate_up, gate_up_scale, False), (down, down_scale, False)
    for num_tokens in bench.sizes.grouped_tokens:
        routings = [bench.routing(num_tokens, seed) for seed in range(3)]
        read = sum(len(routing[2].unique()) for routing in routings) / len(routings)
        work = {"nbytes": read * expert_weights(config) * INT4_BYTES,
                "flops": 2.0 * num_tokens * config.text.num_experts_per_tok * expert_weights(config)}  # fmt: skip
        seconds = bench.seconds(
            lambda i, r=routings: cuda_experts.in_blocks(*r[i % 3], cuda_experts.int4_grouped, *products))
        bench.row(f"grouped INT4, {num_tokens} tokens", seconds, **work)
        runs = [_runs(bench, *routing) for routing in routings]
        seconds = bench.seconds(lambda i, r=runs: _unpack_and_multiply(r[i % 3], bench.stacks))
        bench.row(f"unpacked for the library, {num_tokens} tokens", seconds, **work)


def _runs(bench: Bench, tokens: Tensor, weights: Tensor, expert_ids: Tensor) -> list[tuple[int, Tensor]]:
    """(expert, its tokens), known to the host: the library's form gets the routing for nothing."""
    return [(int(e), tokens[(expert_ids == e).any(-1)]) for e in expert_ids.unique()]


@on_cuda()
def unpacked(words: Tensor, scale: Tensor) -> Tensor:
    """words (O, I/8) and scale (O, I/32) to (O, I) bfloat16."""
    return dequantize(words, scale, "exact").to(torch.bfloat16)


def _unpack_and_multiply(runs: list[tuple[int, Tensor]], stacks: tuple[Tensor, ...]) -> None:
    gate_up, gate_up_scale, down, down_scale = stacks
    for expert, tokens in runs:
        gate, up = F.linear(tokens, unpacked(gate_up[expert], gate_up_scale[expert]).to(tokens.dtype)).chunk(2, dim=-1)
        F.linear(F.silu(gate) * up, unpacked(down[expert], down_scale[expert]).to(tokens.dtype))


def peer(bench: Bench) -> None:
    """One expert's matrix by PyTorch's own INT4 operator, and by ours."""
    text = bench.sizes.config.text
    num_outputs, num_inputs = 2 * text.moe_intermediate_size, text.hidden_size
    nbytes = int(num_outputs * num_inputs * INT4_BYTES)
    count = bench.copies(nbytes)
    words, scale = bench.packed(count, num_outputs, num_inputs)
    zeros = torch.zeros_like(scale)
    pairs = torch.stack([scale, zeros], dim=-1).transpose(1, 2).to(bench.sizes.dtype).contiguous()  # (count, g, O, 2)
    multiply = on_cuda(**cuda_experts.GATHER)(gathered_matvec)
    if bench.is_cuda:  # the CUDA packer wants two weights to a byte, the CPU's one to an integer
        packed = [torch.ops.aten._convert_weight_to_int4pack(w.view(torch.uint8), 8) for w in words]
        operator = torch.ops.aten._weight_int4pack_mm
    else:
        integers = torch.randint(0, 16, (count, num_outputs, num_inputs), dtype=torch.int32)
        packed = [torch.ops.aten._convert_weight_to_int4pack_for_cpu(w, 1) for w in integers]
        operator = torch.ops.aten._weight_int4pack_mm_for_cpu
    for num_tokens in bench.sizes.batches:
        hidden = bench.random(num_tokens, num_inputs)
        work = {"nbytes": nbytes, "flops": 2.0 * num_tokens * num_outputs * num_inputs}
        seconds = bench.seconds(
            lambda i, h=hidden, op=operator: op(h, packed[i % count], INT4_GROUP_SIZE, pairs[i % count]))
        bench.row(f"PyTorch's INT4 operator, {num_tokens} rows", seconds, **work)
        ids = [torch.full((num_tokens,), i, device=bench.device) for i in range(count)]
        if num_tokens <= GATHERED_ON_CUDA // text.num_experts_per_tok:
            seconds = bench.seconds(lambda i, h=hidden, e=ids: multiply(h, words, scale, e[i % count], False))
            bench.row(f"generated matvec, {num_tokens} rows", seconds, **work)


def attention(bench: Bench) -> None:
    """Decode attention on the latent cache, three forms."""
    text = bench.sizes.config.text
    heads, rank, rope, scale = text.num_attention_heads, text.kv_lora_rank, text.qk_rope_head_dim, 0.1
    forms = {
        "FlexAttention, shared key as four": _compiled(bench, _flex),
        "FlexAttention, rope as score_mod": _compiled(bench, _flex_and_rope),
        "two products and a softmax": _compiled(bench, attention_products.all_rows),
    }
    for context in bench.sizes.contexts:
        nbytes = context * (rank + rope) * bench.sizes.dtype.itemsize
        keys = [bench.random(1, context, rank + rope) for _ in range(bench.copies(nbytes))]
        query = bench.random(1, 1, heads, rank + rope)
        start, padding = (torch.tensor([slot], device=bench.device) for slot in (context - 1, 0))
        flops = 2.0 * heads * context * (2 * rank + rope)
        expected = attention_products.all_rows(query, keys[0], start, padding, rank, scale)
        for name, form in forms.items():
            found = form(query, keys[0], start, padding, rank, scale)
            error = float((found - expected).float().norm() / expected.float().norm())
            seconds = bench.seconds(lambda i, f=form, k=keys, q=query, s=start, p=padding:
                                    f(q, k[i % len(k)], s, p, rank, scale))  # fmt: skip
            bench.row(f"{name}, {context}", seconds, nbytes=nbytes, flops=flops, difference=error)


def _compiled(bench: Bench, function: Callable) -> Callable:
    return torch.compile(function, fullgraph=True, dynamic=False) if bench.is_cuda else function


def _flex(query: Tensor, keys: Tensor, start: Tensor, padding: Tensor, rank: int, scale: float) -> Tensor:
    mask = flex_decode.decode_mask(start, padding, keys.shape[1])
    return flex_decode.attend(query, keys, mask, rank, scale)


def _flex_and_rope(query: Tensor, keys: Tensor, start: Tensor, padding: Tensor, rank: int, scale: float) -> Tensor:
    """Only the latent part through FlexAttention; what the rotary part adds to each score is computed before."""
    mask = flex_decode.decode_mask(start, padding, keys.shape[1])
    added = torch.einsum("bthp,bsp->bhs", query[..., rank:], keys[..., rank:]).float() * scale  # (B, H, S)

    def with_rope(score: Tensor, b: Tensor, h: Tensor, q: Tensor, slot: Tensor) -> Tensor:
        return score + added[b, h, slot]

    latent = keys[:, None, :, :rank]  # (B, 1, S, R)
    options = {"BLOCK_N": 64, "num_warps": 4, "num_stages": 2, "SPLIT_KV": 32} if query.is_cuda else None
    mixed = flex_attention(
        query[..., :rank].transpose(1, 2), latent, latent, score_mod=with_rope, block_mask=mask, scale=scale,
        enable_gqa=True, kernel_options=options,
    )  # fmt: skip
    return mixed.transpose(1, 2)  # (B, T, H, R)


def random_layer(bench: Bench) -> LanguageModel:
    """One mixture-of-experts layer with embedding and head, random, INT4 experts, compiled on CUDA."""
    with torch.device("meta"):
        model = LanguageModel(bench.sizes.config.text)
        use_int4_experts(model, bench.sizes.dtype)
    model.to_empty(device=bench.device)
    for name, parameter in model.named_parameters():
        wide = name.endswith("e_score_correction_bias")
        parameter.data = parameter.data.to(torch.float32 if wide else bench.sizes.dtype)
        torch.nn.init.normal_(parameter.data, std=1.0 if parameter.dim() == 1 and not wide else 0.02)
    experts = model.model.layers[0].mlp.experts
    experts.gate_up.weight, experts.gate_up.scale, experts.down.weight, experts.down.scale = bench.stacks
    model.keep_frequencies(bench.device)
    if bench.is_cuda:
        compile_steps(model)
    return model.eval().requires_grad_(False)


def layer(bench: Bench) -> None:
    """One full layer with embedding's width, decoded through a CUDA graph as the product does."""
    config, model = bench.sizes.config, random_layer(bench)
    text = config.text
    slots_width = text.kv_lora_rank + text.qk_rope_head_dim
    compute = model.compute if model.compiled is None else model.compiled
    for context in bench.sizes.contexts:
        for batch in bench.sizes.batches:
            cache = bench.random(batch, context, slots_width)
            start, padding = (torch.full((batch,), slot, device=bench.device) for slot in (context - 1, 0))
            hidden = [bench.random(batch, 1, text.hidden_size) for _ in range(bench.sizes.calls)]
            settings = [cache], "absorbed", context, None, bench.is_cuda, True
            seconds = bench.seconds(lambda i, h=hidden, s=start, p=padding, rest=settings:
                                    compute(h[i % len(h)], s, p, *rest))  # fmt: skip
            nbytes = layer_bytes(config, batch, context, INT4_BYTES)
            bench.row(f"layer, batch {batch}, context {context}", seconds, nbytes=nbytes)


def prefill(bench: Bench) -> None:
    """One layer over a prompt, launched by the host."""
    config, model, length = bench.sizes.config, random_layer(bench), bench.sizes.prefill_tokens
    hidden = bench.random(1, length, config.text.hidden_size)
    start = torch.zeros(1, dtype=torch.int64, device=bench.device)
    mask = block_mask(start, start, length, length) if bench.is_cuda else None
    compute = model.compute if model.compiled is None else model.compiled
    seconds = bench.seconds(
        lambda i: compute(hidden, start, start, None, "expanded", length, mask, False, True), graphed=False)
    bench.row(f"prefill of {length} tokens, one layer", seconds, flops=layer_flops(config, length))


def vision(bench: Bench) -> None:
    """Images through the tower, launched by the host."""
    config = bench.sizes.config.vision
    with torch.device("meta"):
        tower = VisionTower(config)
    tower.to_empty(device=bench.device).to(bench.sizes.dtype).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter.data, std=0.02)
    width, depth, mlp = config.vt_hidden_size, config.vt_num_hidden_layers, config.vt_intermediate_size
    for (t, h, w), count in bench.sizes.grids:
        patches = t * h * w
        pixels = bench.random(count * patches, 3, config.patch_size, config.patch_size)
        grids = torch.tensor([[t, h, w]] * count, device=bench.device)
        seconds = bench.seconds(lambda i, p=pixels, g=grids: tower(p, g), graphed=False)
        flops = 2.0 * count * depth * (patches * width * (4 * width + 2 * mlp) + 2 * patches**2 * width)
        bench.row(f"{count} images of {14 * w} x {14 * h}", seconds, flops=flops, images_per_s=count / seconds)


def agreement(bench: Bench) -> None:
    """The shipped model on this device against the reference, stage by stage."""
    beyond = []
    for dtype in ("float32", "bfloat16"):
        args = argparse.Namespace(model=SHIPPED_MODEL, dtype=dtype, device=bench.device.type, attention="auto")
        rows, (flips, routed) = parity.compare(args)
        worst = max(rows, key=lambda row: row.share)
        bench.rows.append({
            "name": f"parity {dtype}", "worst_stage": worst.stage, "error": worst.error, "allowed": worst.allowed,
            "stages": len(rows), "flips": flips, "routed": routed,
        })  # fmt: skip
        bench.log(f"  {dtype}: {len(rows)} stages, worst {worst.stage} {worst.error:.2e} of {worst.allowed:.2e}")
        beyond += [f"{dtype} {row.stage}" for row in rows if row.share > 1]
    if beyond:
        raise AssertionError(f"beyond the tolerance: {', '.join(beyond)}")


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "tests": tests, "ceilings": ceilings, "parity": agreement, "experts": experts, "layer": layer,
    "attention": attention, "grouped": grouped, "peer": peer, "prefill": prefill, "vision": vision,
}  # fmt: skip
