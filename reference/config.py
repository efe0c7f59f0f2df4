"""Configuration: the published `config.json`, read into frozen dataclasses with the published names.

One reader serves Kimi K2.5 (and K2.6, K2.7), whose text and vision parts are nested, and its relatives K2, K2-Thinking,
Moonlight and Kimi-VL. Whatever this implementation does not compute is refused here, with the key that says so, rather
than ignored. `reference/presets.py` holds the published values themselves.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .presets import PRESETS

INT4_GROUP_SIZE = 32  # columns that share one scale; the only group size that is published
_REQUIRED = object()


@dataclass(frozen=True)
class RopeScaling:
    """YaRN parameters. Source: YaRN, arXiv 2309.00071, section 3; published `rope_scaling`."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


@dataclass(frozen=True)
class TextConfig:
    """The decoder, as in the published `text_config`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    first_k_dense_replace: int  # layers below this index have a dense MLP
    num_attention_heads: int
    q_lora_rank: int | None  # None: queries by one full matrix (Moonlight, Kimi-VL)
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    initializer_range: float
    # Not a published key: the published code leaves q_a_layernorm and kv_a_layernorm at their class default.
    # vLLM and its relatives use rms_norm_eps there; set it so to compare with them.
    latent_norm_eps: float = 1e-6

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim


@dataclass(frozen=True)
class VisionConfig:
    """MoonViT-3D and the projector, as in the published `vision_config`. Kimi-VL's MoonViT is the one-frame case."""

    vt_hidden_size: int
    vt_num_hidden_layers: int
    vt_num_attention_heads: int
    vt_intermediate_size: int
    patch_size: int
    init_pos_emb_height: int
    init_pos_emb_width: int
    init_pos_emb_time: int  # 1: no temporal embedding (Kimi-VL)
    merge_kernel_size: tuple[int, int]
    projector_ln_eps: float

    @property
    def head_dim(self) -> int:
        return self.vt_hidden_size // self.vt_num_attention_heads

    @property
    def merged_size(self) -> int:
        """Width of one merged token before the projector: the patches of one merge window side by side."""
        return self.vt_hidden_size * self.merge_kernel_size[0] * self.merge_kernel_size[1]


@dataclass(frozen=True)
class KimiConfig:
    """A whole model. `vision` is None for the text-only relatives; `quantization` is "int4", "fp8" or None."""

    model_type: str
    text: TextConfig
    vision: VisionConfig | None
    media_placeholder_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    quantization: str | None

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "config.json") -> "KimiConfig":
        """Read a parsed `config.json`. Raises ConfigError, naming the key, for anything missing or contradictory."""
        return _read_config(values, where)

    @classmethod
    def from_directory(cls, directory: str | Path) -> "KimiConfig":
        """Read `config.json`, and the stop tokens of `generation_config.json` if there is one. Raises ConfigError."""
        config = cls.from_dict(read_config_file(Path(directory) / "config.json"))
        generation_file = Path(directory) / "generation_config.json"
        if not generation_file.exists():
            return config
        eos = _token_ids(read_config_file(generation_file).get("eos_token_id"), "generation_config.json: eos_token_id")
        return dataclasses.replace(config, eos_token_ids=tuple(sorted({*config.eos_token_ids, *eos})))


def preset(name: str) -> KimiConfig:
    """The published architecture called `name`, without weights. Raises ConfigError for an unknown name."""
    if name not in PRESETS:
        raise ConfigError(f"{name}: no such preset. Known: {', '.join(sorted(PRESETS))}.")
    return KimiConfig.from_dict(PRESETS[name], where=f"preset {name}")


def read_config_file(path: Path) -> dict[str, Any]:
    """Read one JSON object. Raises ConfigError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Expected a checkpoint folder in the published layout."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}). Restore the file from its source.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a JSON {type(values).__name__}, expected an object.")
    return values


class _Reader:
    """Typed values out of one JSON object; an error names the file and the key.

    Several names are spellings of one value (the published one first): they must agree where both are given.
    """

    def __init__(self, values: Any, where: str):
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: expected a JSON object, found {values!r}.")
        self.values, self.where = values, where

    def value(self, *names: str, default: Any = _REQUIRED) -> Any:
        found = {name: self.values[name] for name in names if name in self.values}
        if not found:
            if default is _REQUIRED:
                raise ConfigError(f"{self.where}: {names[0]} is missing. Is this config.json of a Kimi model?")
            return default
        (first, value), *others = found.items()
        for name, other in others:
            if other != value:
                raise ConfigError(f"{self.where}: {first} is {value!r} but {name} is {other!r}; they must be equal.")
        return value

    def integer(self, *names: str, default: Any = _REQUIRED, at_least: int = 1) -> Any:
        value = self.value(*names, default=default)
        if value is default:
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value < 2**31:
            raise ConfigError(f"{self.where}: {names[0]} is {value!r}, expected an integer of at least {at_least}.")
        return value

    def number(self, *names: str, default: Any = _REQUIRED, zero_too: bool = False) -> float:
        value = self.value(*names, default=default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (0 < value <= sys.float_info.max or (zero_too and value == 0)):
            expected = "a number of at least 0" if zero_too else "a positive number"
            raise ConfigError(f"{self.where}: {names[0]} is {value!r}, expected {expected}.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.value(name, default=default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {name} is {value!r}, expected true or false.")
        return value

    def only(self, name: str, supported: Any, *also: Any) -> None:
        """Refuse a setting whose other values this implementation does not compute. Absent counts as `supported`."""
        value = self.value(name, default=supported)
        if value not in (supported, *also):
            raise ConfigError(f"{self.where}: {name} is {value!r}; only {supported!r} is implemented here.")


def _read_config(values: dict[str, Any], where: str) -> KimiConfig:
    top = _Reader(values, where)
    model_type = top.value("model_type")
    known = ("kimi_k25", "kimi_k2", "deepseek_v3", "kimi_vl")
    if model_type not in known:
        raise ConfigError(f"{where}: model_type is {model_type!r}, expected one of {', '.join(known)}.")
    nested = model_type in ("kimi_k25", "kimi_vl")
    text_reader = _Reader(top.value("text_config"), f"{where}: text_config") if nested else top
    if nested:
        text_reader.only("model_type", "kimi_k2", "deepseek_v3")
    top.only("tie_word_embeddings", False)
    text = _read_text(text_reader)
    vision = _read_vision(top, text) if nested else None
    quantization = _read_quantization(top, text_reader)
    if quantization == "int4":
        for name in ("hidden_size", "moe_intermediate_size"):
            if getattr(text, name) % INT4_GROUP_SIZE:
                raise ConfigError(
                    f"{text_reader.where}: {name} is {getattr(text, name)}; INT4 experts need a multiple of "
                    f"{INT4_GROUP_SIZE}, the group size."
                )
    placeholder = None
    if nested:
        placeholder = top.integer("media_placeholder_token_id", "image_token_id", at_least=0)
        if placeholder >= text.vocab_size:
            raise ConfigError(
                f"{where}: media_placeholder_token_id is {placeholder} but vocab_size is {text.vocab_size}; "
                "the placeholder needs a row in the embedding."
            )
    pad = top.value("pad_token_id", default=text_reader.value("pad_token_id", default=None))
    eos = top.value("eos_token_id", default=text_reader.value("eos_token_id", default=None))
    return KimiConfig(
        model_type=model_type,
        text=text,
        vision=vision,
        media_placeholder_token_id=placeholder,
        eos_token_ids=_token_ids(eos, f"{where}: eos_token_id"),
        pad_token_id=max(_token_ids(pad, f"{where}: pad_token_id"), default=None),
        quantization=quantization,
    )


def _read_text(reader: _Reader) -> TextConfig:
    reader.only("scoring_func", "sigmoid")
    reader.only("topk_method", "noaux_tc")
    reader.only("hidden_act", "silu")
    reader.only("moe_layer_freq", 1)
    reader.only("attention_bias", False)
    reader.only("tie_word_embeddings", False)
    reader.only("rope_interleave", True)
    rope_theta, rope_scaling = _read_rope(reader)
    num_heads = reader.integer("num_attention_heads")
    config = TextConfig(
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_hidden_layers=reader.integer("num_hidden_layers"),
        first_k_dense_replace=reader.integer("first_k_dense_replace", at_least=0),
        num_attention_heads=num_heads,
        q_lora_rank=None if reader.value("q_lora_rank") is None else reader.integer("q_lora_rank"),
        kv_lora_rank=reader.integer("kv_lora_rank"),
        qk_nope_head_dim=reader.integer("qk_nope_head_dim"),
        qk_rope_head_dim=reader.integer("qk_rope_head_dim"),
        v_head_dim=reader.integer("v_head_dim"),
        intermediate_size=reader.integer("intermediate_size"),
        moe_intermediate_size=reader.integer("moe_intermediate_size"),
        n_routed_experts=reader.integer("n_routed_experts"),
        n_shared_experts=reader.integer("n_shared_experts"),
        num_experts_per_tok=reader.integer("num_experts_per_tok"),
        n_group=reader.integer("n_group", default=1),
        topk_group=reader.integer("topk_group", default=1),
        norm_topk_prob=reader.flag("norm_topk_prob", default=True),
        routed_scaling_factor=reader.number("routed_scaling_factor"),
        rms_norm_eps=reader.number("rms_norm_eps"),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        initializer_range=reader.number("initializer_range", default=0.02),
    )
    _check_text(config, reader)
    return config


def _check_text(config: TextConfig, reader: _Reader) -> None:
    where, num_experts = reader.where, config.n_routed_experts
    if reader.integer("num_key_value_heads", default=config.num_attention_heads) != config.num_attention_heads:
        raise ConfigError(
            f"{where}: num_key_value_heads differs from num_attention_heads; latent attention expands one key and one "
            "value per head, so they are equal."
        )
    if config.num_experts_per_tok > num_experts:
        raise ConfigError(
            f"{where}: num_experts_per_tok is {config.num_experts_per_tok} but n_routed_experts is {num_experts}; it "
            "must not exceed it. Is this a trimmed checkpoint? Trim both."
        )
    if num_experts % config.n_group or config.topk_group > config.n_group:
        raise ConfigError(
            f"{where}: n_group {config.n_group} must divide n_routed_experts {num_experts}, and topk_group "
            f"{config.topk_group} must not exceed it."
        )
    if config.n_group > 1 and num_experts // config.n_group < 2:
        raise ConfigError(
            f"{where}: n_group {config.n_group} leaves one expert per group; a group is ranked by its two best."
        )
    reachable = num_experts // config.n_group * config.topk_group
    if config.num_experts_per_tok > reachable:
        raise ConfigError(
            f"{where}: num_experts_per_tok is {config.num_experts_per_tok} but topk_group leaves {reachable} experts."
        )
    if config.qk_rope_head_dim % 2:
        raise ConfigError(f"{where}: qk_rope_head_dim is {config.qk_rope_head_dim}; rotary pairs need an even number.")


def _read_rope(reader: _Reader) -> tuple[float, RopeScaling | None]:
    """Both spellings: `rope_theta` beside `rope_scaling`, or the two merged in `rope_parameters`."""
    parameters, scaling = reader.value("rope_parameters", default=None), reader.value("rope_scaling", default=None)
    merged = _Reader({} if parameters is None else parameters, f"{reader.where}: rope_parameters")
    theta = reader.number("rope_theta", default=merged.value("rope_theta", default=None))
    if merged.value("rope_theta", default=theta) != theta:
        raise ConfigError(f"{merged.where}: rope_theta contradicts rope_theta {theta} beside it.")
    candidates = [_read_rope_scaling(_Reader(scaling, f"{reader.where}: rope_scaling"))] if scaling else []
    if parameters is not None:
        candidates.append(_read_rope_scaling(merged))
    if len(candidates) == 2 and candidates[0] != candidates[1]:
        raise ConfigError(f"{reader.where}: rope_scaling and rope_parameters contradict each other. Keep one of them.")
    return theta, candidates[0] if candidates else None


def _read_rope_scaling(reader: _Reader) -> RopeScaling | None:
    kind = reader.value("type", "rope_type", default="default")
    if kind == "default":
        return None
    if kind != "yarn":
        raise ConfigError(f"{reader.where}: type is {kind!r}; only 'yarn' (or none) is implemented here.")
    return RopeScaling(
        factor=reader.number("factor"),
        original_max_position_embeddings=reader.integer("original_max_position_embeddings"),
        beta_fast=reader.number("beta_fast", default=32.0),
        beta_slow=reader.number("beta_slow", default=1.0),
        mscale=reader.number("mscale", default=1.0),
        # Absent means 0 in the published code: nothing in the softmax, all of it on cosine and sine.
        mscale_all_dim=reader.number("mscale_all_dim", default=0.0, zero_too=True),
    )


def _read_vision(top: _Reader, text: TextConfig) -> VisionConfig:
    reader = _Reader(top.value("vision_config"), f"{top.where}: vision_config")
    for name, supported in (
        ("pos_emb_type", "divided_fixed"),
        ("merge_type", "sd2_tpool"),
        ("video_attn_type", "spatial_temporal"),
        ("mm_projector_type", "patchmerger"),
        ("projector_hidden_act", "gelu"),
    ):
        reader.only(name, supported)
    reader.only("text_hidden_size", text.hidden_size)
    merge = reader.value("merge_kernel_size", default=[2, 2])
    if not isinstance(merge, list | tuple) or len(merge) != 2 or not all(isinstance(m, int) and m > 0 for m in merge):
        raise ConfigError(f"{reader.where}: merge_kernel_size is {merge!r}, expected two integers like [2, 2].")
    config = VisionConfig(
        vt_hidden_size=reader.integer("vt_hidden_size", "hidden_size"),
        vt_num_hidden_layers=reader.integer("vt_num_hidden_layers", "num_hidden_layers"),
        vt_num_attention_heads=reader.integer("vt_num_attention_heads", "num_attention_heads"),
        vt_intermediate_size=reader.integer("vt_intermediate_size", "intermediate_size"),
        patch_size=reader.integer("patch_size"),
        init_pos_emb_height=reader.integer("init_pos_emb_height", "pos_emb_height"),
        init_pos_emb_width=reader.integer("init_pos_emb_width", "pos_emb_width"),
        init_pos_emb_time=reader.integer("init_pos_emb_time", "pos_emb_time", default=1),
        merge_kernel_size=(merge[0], merge[1]),
        projector_ln_eps=_Reader({**top.values, **reader.values}, reader.where).number(
            "projector_ln_eps", "projection_layer_norm_eps", default=1e-5
        ),
    )
    width = config.vt_hidden_size
    for where, name in ((reader, "mm_hidden_size"), (top, "projection_hidden_size")):
        if where.integer(name, default=width) != width:
            raise ConfigError(f"{where.where}: {name} differs from vt_hidden_size {width}, the projector's input.")
    if width % config.vt_num_attention_heads or config.head_dim % 4:
        raise ConfigError(
            f"{reader.where}: vt_hidden_size {width} over {config.vt_num_attention_heads} heads must give a head "
            "dimension divisible by 4 (2-D rotary turns x and y pairs)."
        )
    return config


def _read_quantization(top: _Reader, text_reader: _Reader) -> str | None:
    """K2.5 nests `quantization_config` in `text_config`, K2-Thinking and K2 have it at the top level. Both are read."""
    found = [r.value("quantization_config", default=None) for r in (text_reader, top)]
    given = [value for value in found if value]
    if not given:
        return None
    values = given[0]
    if given[-1] != values:
        raise ConfigError(
            f"{top.where}: quantization_config and text_config.quantization_config contradict each other. Keep one."
        )
    reader = _Reader(values, f"{top.where}: quantization_config")
    method = reader.value("quant_method")
    if method == "fp8":
        reader.only("fmt", "e4m3")
        reader.only("weight_block_size", [128, 128])
        return "fp8"
    if method != "compressed-tensors":
        raise ConfigError(f"{reader.where}: quant_method is {method!r}, expected 'compressed-tensors' or 'fp8'.")
    reader.only("format", "pack-quantized")
    for name, values in _Reader(reader.value("config_groups"), f"{reader.where}: config_groups").values.items():
        group = _Reader(values, f"{reader.where}: {name}")
        weights = _Reader(group.value("weights"), f"{group.where}: weights")
        for key, supported in (("num_bits", 4), ("type", "int"), ("symmetric", True), ("strategy", "group")):
            weights.only(key, supported)
        weights.only("group_size", INT4_GROUP_SIZE)
    return "int4"


def _token_ids(value: Any, where: str) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ConfigError(f"{where} is {value!r}, expected a token id or a list of them.")
    return tuple(sorted(set(ids)))
