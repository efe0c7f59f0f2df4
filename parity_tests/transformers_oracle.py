"""transformers 5.23 beside us: load the same folder, see the same stages, compare. Its defects: docs/parity.md."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity_tests.agreement import FLOAT32, assert_agrees
from reference.stages import observing


def import_transformers() -> Any:
    """Offline and quiet; a test that needs it is skipped, loudly, where it is not installed."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def load_theirs(directory: Path, kind: str = "AutoModelForImageTextToText") -> nn.Module:
    """Their model in float32. Nothing may be missing or unexpected in the checkpoint."""
    model, report = getattr(import_transformers(), kind).from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    for parameter in model.parameters():
        parameter.data = parameter.data.float()  # unpacked experts stay bfloat16, and .float() is refused
    return model.eval()


def their_decoder(model: nn.Module) -> nn.Module:
    return model.model.language_model if hasattr(model.model, "language_model") else model.model


@torch.no_grad()
def their_stages(model: nn.Module, input_ids: Tensor, **inputs: Any) -> dict[str, Tensor]:
    """One forward of theirs, its activations under our stage names."""
    stages: dict[str, Tensor] = {}

    def keep(*names: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            stages.update(zip(names, outputs, strict=False))
        return hook

    def keep_input(module: nn.Module, args: Any) -> None:
        stages["hidden.0"] = args[0]

    layers = their_decoder(model).layers
    hooks = [layers[0].register_forward_pre_hook(keep_input)]
    for i, layer in enumerate(layers):
        hooks.append(layer.register_forward_hook(keep(f"hidden.{i + 1}")))
        if hasattr(layer.mlp, "gate"):
            names = (f"layers.{i}.router.logits", f"layers.{i}.router.weights", f"layers.{i}.router.experts")
            hooks.append(layer.mlp.gate.register_forward_hook(keep(*names)))
    if hasattr(model.model, "mm_projector"):
        hooks.append(model.model.mm_projector.register_forward_hook(keep("vision.features")))
    stages["logits"] = model(input_ids=input_ids, **inputs).logits
    for hook in hooks:
        hook.remove()
    return stages


@torch.no_grad()
def our_stages(model: nn.Module, input_ids: Tensor, **inputs: Any) -> dict[str, Tensor]:
    stages: dict[str, Tensor] = {}

    def record(name: str, tensor: Tensor) -> Tensor:
        stages[name] = tensor
        return tensor

    with observing(record):
        model(input_ids, **inputs)
    return stages


def assert_same(case: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Routing is discrete: first the same experts, then the same numbers."""
    for name in [name for name in theirs if name.endswith("router.experts")]:
        weights = name.replace("experts", "weights")
        our_order, their_order = ours[name].sort(dim=-1), theirs[name].sort(dim=-1)
        assert torch.equal(our_order.values, their_order.values), f"{case}: {name} differ"
        assert_agrees("transformers router.weights", ours[weights].gather(-1, our_order.indices),
                      theirs[weights].gather(-1, their_order.indices), FLOAT32)
    for name in theirs:
        if not name.startswith("layers."):
            stage = name.split(".")[0] if name.startswith("hidden.") else name
            assert_agrees(f"transformers {stage}", ours[name], theirs[name].view_as(ours[name]), FLOAT32)
