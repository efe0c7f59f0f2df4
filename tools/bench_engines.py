"""The engines that `tools.bench` compares, all built from the same published tensors."""

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

import optimized.model as optimized
import reference.model as plain
from reference.checkpoint import use_int4
from reference.config import KimiConfig
from reference.errors import UsageError
from reference.int4 import dequantize, set_int4_product

from .bench_models import Weights

INT4_BITS = 4.5  # four bits, and a bfloat16 scale for every 32 weights

Session = Callable[[Tensor], Tensor]


@dataclass
class Engine:
    """`begin(num_tokens)` opens a conversation that may get so long: a function from tokens (1, T) to the next, (1, 1).

    `see(pixels, grids)` computes the features of media, if the engine was given a vision tower. `mixtures` are its
    modules of routed experts, called with tokens, weights and expert ids; none where they cannot be called alone.
    """

    begin: Callable[[int], Session]
    see: Callable[[Tensor, Tensor], object] | None
    mixtures: list[nn.Module]
    expert_bits: float
    dtype: torch.dtype
    weights_bytes: int
    is_compiled: bool = False
    name: str = ""
    load_s: float = 0.0
    compile_s: float = 0.0


def engine_builders(
    weights: Weights, dtype: torch.dtype, backend: str, peer: str | None, compiled: str | None
) -> Iterator[tuple[str, int, Callable[[], Engine]]]:
    """(name, bytes of weights, how to build it) for everything that was asked for.

    compiled: None, "too" or "only", beside or instead of the uncompiled forms; the reference has no other form.
    """
    kind, packed = str(dtype).removeprefix("torch."), any(name.endswith("_packed") for name in weights.tensors)
    elements = sum(t.numel() * (8 if name.endswith("_packed") else 1) for name, t in weights.tensors.items())
    dense_bytes = elements * dtype.itemsize
    own_bytes = weights.nbytes * (dtype.itemsize if not packed else 1)
    forms = {None: [False], "too": [False, True], "only": [True]}[compiled]
    if backend in ("reference", "all"):
        yield "reference", own_bytes, lambda: ours(plain, weights.tensors, weights, dtype)
    if backend in ("optimized", "all"):
        for form in forms:
            mark = ", compiled" if form else ""
            if packed:
                yield (f"optimized INT4{mark}", own_bytes,
                       lambda f=form: ours(optimized, weights.tensors, weights, dtype, f))  # fmt: skip
            yield (f"optimized {kind}{mark}", dense_bytes,
                   lambda f=form: ours(optimized, unpacked(weights.tensors), weights, dtype, f))  # fmt: skip
    if peer:
        if not importlib.util.find_spec("transformers"):
            raise UsageError("--peer transformers: not installed. Install the dev extra: pip install -e '.[dev]'.")
        for form in forms:
            yield (f"transformers{', compiled' if form else ''}", dense_bytes,
                   lambda f=form: transformers_peer(weights, dtype, f))  # fmt: skip


def unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights without INT4: what an engine without packed products has to read."""
    dense = {name: tensor for name, tensor in tensors.items() if ".weight_" not in name}
    for name in tensors:
        if name.endswith(".weight_packed"):
            base = name.removesuffix("_packed")
            dense[base] = dequantize(tensors[name], tensors[f"{base}_scale"], "bfloat16")
    return dense


def ours(
    module: ModuleType, tensors: dict[str, Tensor], weights: Weights, dtype: torch.dtype, compiled: bool = False
) -> Engine:
    """The reference or the optimized model, which have the same constructors."""
    config, packed = weights.config, any(name.endswith("_packed") for name in tensors)
    with torch.device("meta"):
        model = module.KimiModel(config) if config.vision is not None else module.TextOnlyModel(config)
        if packed and module is optimized:
            optimized.use_int4_experts(model, dtype)
        elif packed:
            use_int4(model, plain.routed_linears(model))
    model.load_state_dict({name: converted(name, tensor, dtype) for name, tensor in tensors.items()}, assign=True)
    set_int4_product(model.eval(), "exact")
    if compiled:
        optimized.compile_steps(model)

    def begin(num_tokens: int) -> Session:
        cache = model.new_cache(1, num_tokens) if module is optimized else model.new_cache(1)
        return lambda ids: model(ids, cache=cache, last_only=True).argmax(dim=-1)

    see = model.media_features if config.vision is not None else None
    mixtures = [module.experts for module in model.modules() if isinstance(module, optimized.MixtureOfExperts)]
    bits = INT4_BITS if packed else 8 * dtype.itemsize
    return Engine(begin, see, mixtures, bits, dtype, held_bytes(model), compiled)


def held_bytes(model: nn.Module) -> int:
    """What parameters and buffers take in memory, whatever layout they are in."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As the loader does it: everything floating becomes `dtype`, except scales and the router's bias."""
    stays = not tensor.is_floating_point() or name.endswith((".weight_scale", "e_score_correction_bias"))
    return tensor if stays else tensor.to(dtype)


def transformers_peer(weights: Weights, dtype: torch.dtype, compiled: bool) -> Engine:
    """transformers' DeepSeek-V3, which K2.5's text model is: its default settings, or static cache and compiled."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    left_out = ("auto_map", "quantization_config", "architectures", "model_type")
    config = transformers.DeepseekV3Config(**{k: v for k, v in weights.raw_text_config.items() if k not in left_out})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(stacked(unpacked(weights.tensors), dtype), assign=True, strict=False)
    model = model.eval()
    rotary = model.model.rotary_emb  # its tables are computed, not stored: on the meta device they have no values
    model.model.rotary_emb = type(rotary)(config)
    step = torch.compile(model, dynamic=False) if compiled else model

    def begin(num_tokens: int) -> Session:
        static = {"config": config, "max_cache_len": num_tokens}
        cache = transformers.StaticCache(**static) if compiled else transformers.DynamicCache(config=config)

        def session(ids: Tensor) -> Tensor:
            forward = step if ids.shape[1] == 1 else model
            return forward(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(dim=-1)

        return session

    see = None if weights.config.vision is None or compiled else transformers_tower(weights.config, dtype)
    return Engine(begin, see, [], 8 * dtype.itemsize, dtype, held_bytes(model), compiled)


def transformers_tower(config: KimiConfig, dtype: torch.dtype) -> Callable[[Tensor, Tensor], object]:
    """Its tower and projector with the same sizes and random weights: it permutes ours, which changes no time."""
    from transformers.models.kimi_k25 import configuration_kimi_k25 as configuration
    from transformers.models.kimi_k25 import modeling_kimi_k25 as modeling

    vision = config.vision
    sizes = {
        "patch_size": vision.patch_size, "hidden_size": vision.vt_hidden_size,
        "num_hidden_layers": vision.vt_num_hidden_layers, "num_attention_heads": vision.vt_num_attention_heads,
        "intermediate_size": vision.vt_intermediate_size, "pos_emb_height": vision.init_pos_emb_height,
        "pos_emb_width": vision.init_pos_emb_width, "merge_kernel_size": list(vision.merge_kernel_size),
    }  # fmt: skip
    text = {"model_type": "deepseek_v3", "hidden_size": config.text.hidden_size}
    theirs = configuration.Kimi_K25Config(
        vision_config=sizes, text_config=text, projection_hidden_size=vision.vt_hidden_size
    )
    tower = modeling.Kimi_K25VisionModel(theirs.vision_config).to(dtype).eval()
    projector = modeling.Kimi_K25MultimodalProjection(theirs).to(dtype).eval()
    return lambda pixels, grids: projector(tower(pixels.to(dtype), grid_thw=grids).pooler_output)


def stacked(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Published text tensors in transformers' layout: all experts of a layer in two tensors."""
    state: dict[str, Tensor] = {}
    experts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("language_model.")
        if not name.startswith(("model.", "lm_head.")):
            continue
        expert = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)_proj\.weight", name)
        if expert:
            experts.setdefault(expert[1], {})[f"{expert[2]} {expert[3]}"] = tensor
        else:
            state[name] = tensor if name.endswith("e_score_correction_bias") else tensor.to(dtype)
    for prefix, parts in experts.items():
        numbers = range(len(parts) // 3)
        gate_up = [torch.cat([parts[f"{i} gate"], parts[f"{i} up"]]) for i in numbers]
        state[f"{prefix}.gate_up_proj"] = torch.stack(gate_up).to(dtype)
        state[f"{prefix}.down_proj"] = torch.stack([parts[f"{i} down"] for i in numbers]).to(dtype)
    return state
