"""Run a model on given tokens and pixels, and save what it computes on the way, stage by stage."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from reference.command import OneLineParser, run, write_whole
from reference.config import KimiConfig
from reference.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

EXAMPLES = """examples:
  python -m tools.dump_activations --model reference/nano --input in.safetensors --out out.safetensors
  python -m tools.dump_activations --model reference/nano --input in.safetensors --out all.safetensors --all
"""

ALWAYS = ("hidden.", "logits", "vision.features")  # prefixes of the stages that are saved without --all


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.dump_activations",
        description=f"{__doc__} Names and shapes: docs/dump-names.md.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="DIR", type=Path, required=True, help="a checkpoint in the published layout")
    parser.add_argument(
        "--input",
        metavar="IN",
        type=Path,
        required=True,
        help="safetensors: input_ids int64 [B, T], optionally pixel_values [n, 3, 14, 14] and grid_thws int64 [M, 3]",
    )
    parser.add_argument("--out", metavar="OUT", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float64"), default="float32")
    parser.add_argument("--backend", choices=("reference", "optimized"), default="reference")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--all", action="store_true", help="save every stage inside the layers and the tower, too")
    parser.add_argument(
        "--int4-product",
        choices=("bfloat16", "exact"),
        default="bfloat16",
        help="whether q * scale of INT4 weights is rounded to bfloat16, as published, or stays exact",
    )
    args = parser.parse_args(argv)
    if args.backend == "optimized" and args.dtype == "float64":
        raise UsageError("--dtype float64: the optimized backend has no float64. Use --backend reference.")

    if args.out.resolve() == args.input.resolve():
        raise UsageError(f"--out {args.out} is the input and would be overwritten. Name another file.")
    config = KimiConfig.from_directory(args.model)
    inputs = read_inputs(args.input)
    check_inputs(inputs, config, args.input)
    with write_whole(args.out) as temporary:
        import torch
        from safetensors.torch import save_file

        from reference.int4 import set_int4_product

        model = load_backend(args.backend, args.model, getattr(torch, args.dtype), args.device)
        set_int4_product(model, args.int4_product)
        stages = record(model, {name: tensor.to(args.device) for name, tensor in inputs.items()}, args.all)
        settings = {name: str(getattr(args, name)) for name in ("backend", "dtype", "device", "int4_product")}
        save_file(stages, temporary, metadata=settings)
    print(f"{args.out}: {len(stages)} tensors, computed in {args.dtype} by the {args.backend} backend")
    return 0


def read_inputs(path: Path) -> dict[str, "Tensor"]:
    """The tensors of IN. Raises UsageError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            inputs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read ({error}). Expected a safetensors file with input_ids.") from None
    if "input_ids" not in inputs:
        raise UsageError(f"{path}: holds no input_ids, but {', '.join(inputs) or 'nothing'}. Add them, int64 [B, T].")
    if unknown := sorted(set(inputs) - {"input_ids", "pixel_values", "grid_thws"}):
        print(f"warning: {path}: {', '.join(unknown)} not used", file=sys.stderr)
    return {name: tensor for name, tensor in inputs.items() if name not in unknown}


def check_inputs(inputs: dict[str, "Tensor"], config: KimiConfig, path: Path) -> None:
    """Raises UsageError or MediaError if the tensors do not fit one another or the configuration."""
    ids, pixels, grids = (inputs.get(name) for name in ("input_ids", "pixel_values", "grid_thws"))
    found = f"{str(ids.dtype).removeprefix('torch.')} {list(ids.shape)}"
    if ids.dim() != 2 or ids.numel() == 0 or not found.startswith("int64"):
        raise UsageError(f"{path}: input_ids is {found}, expected int64 [B, T].")
    if ids.min() < 0 or ids.max() >= config.text.vocab_size:
        vocab_size = config.text.vocab_size
        raise UsageError(f"{path}: input_ids go from {ids.min()} to {ids.max()}, expected 0 to {vocab_size - 1}.")
    if (pixels is None) != (grids is None):
        raise UsageError(f"{path}: pixel_values and grid_thws belong together. Give both or none.")
    if config.vision is None:
        if pixels is not None:
            raise UsageError(f"{path}: has pixels, but model_type {config.model_type} has no vision part. Send text.")
        return
    check_placeholders(ids, pixels, grids, config, path)


def check_placeholders(
    ids: "Tensor", pixels: "Tensor | None", grids: "Tensor | None", config: KimiConfig, path: Path
) -> None:
    """Raises UsageError unless input_ids hold one placeholder per media token. Without pixels it only warns."""
    from reference.vision import check_media

    num_places = int((ids == config.media_placeholder_token_id).sum())
    if pixels is None:
        if num_places:
            print(f"warning: {path}: {num_places} media placeholders but no pixel_values", file=sys.stderr)
        return
    check_media(pixels, grids, config.vision)
    down, across = config.vision.merge_kernel_size
    num_features = sum(h // down * (w // across) for _, h, w in grids.tolist())
    if num_places != num_features:
        raise UsageError(
            f"{path}: input_ids hold {num_places} media placeholders (id {config.media_placeholder_token_id}), "
            f"grid_thws make {num_features} media tokens; expected one placeholder per token."
        )


def load_backend(backend: str, directory: Path, dtype: "torch.dtype", device: str) -> "nn.Module":
    """Load a model with the reference or the optimized code. Raises UsageError if there is no such device."""
    import torch

    import optimized.model as optimized
    import reference.model as reference

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA GPU here. Use --device cpu.")
    return (reference if backend == "reference" else optimized).load_model(directory, dtype, device)


def record(model: "nn.Module", inputs: dict[str, "Tensor"], everything: bool) -> dict[str, "Tensor"]:
    """One forward pass; what passed through `stage`, in the dtype of the run."""
    import torch

    from reference.stages import observing

    stages: dict[str, Tensor] = {}

    def keep(name: str, tensor: "Tensor") -> "Tensor":
        if everything or name.startswith(ALWAYS):
            # A copy: stages may be views of one tensor, and a safetensors file has no views.
            stages[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return tensor

    with torch.no_grad(), observing(keep):
        model(**inputs)
    return stages


if __name__ == "__main__":
    raise SystemExit(run(main))
