"""Which weights a measurement is about: their hash, and their folder as a reader of the report knows it."""

import hashlib
import os
from pathlib import Path

from reference.command import read_json
from reference.errors import UsageError

SIBLING_FILE = "quantised_sibling.json"  # beside unquantised weights: which INT4 checkpoint the same training wrote


def fingerprint(directory: Path) -> str:
    """SHA-256 over a checkpoint's safetensors files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def sibling_fingerprint(directory: Path) -> str | None:
    """Of the INT4 checkpoint that the training of these unquantised weights wrote; None where nothing says so."""
    path = directory / SIBLING_FILE
    if not path.exists():
        return None
    mark = read_json(path, "the mark of tools.train")
    if not (isinstance(mark, dict) and isinstance(mark.get("int4_sha256"), str)):
        raise UsageError(f"{path}: has no int4_sha256. Remove it, or make the weights again: tools.train --resume.")
    return mark["int4_sha256"]


def shown(path: Path) -> str:
    """A path below the working directory relative to it, any other one by its last part alone."""
    relative = os.path.relpath(path)
    return Path(path).name if relative.startswith("..") else Path(relative).as_posix()
