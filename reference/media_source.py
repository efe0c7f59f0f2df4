"""Where a picture, video or document comes from: a path, bytes, a `data:` URL or a decoded image. Never the network."""

import base64
import binascii
import io
import re
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from .errors import MediaError

Source = bytes | Path | Image.Image


def resolve(value: Any, name: str) -> tuple[Source, str]:
    """Turn what a user wrote into a source and the name it has in messages: its path, or else `name`.

    Raises MediaError for URLs of the network, damaged data URLs, missing files and other types.
    """
    if isinstance(value, Image.Image):
        return value, name
    if isinstance(value, bytes | bytearray):
        return _not_empty(bytes(value), name), name
    if isinstance(value, str) and value[:5].lower() == "data:":
        return _not_empty(_data_of_url(value, name), name), name
    if isinstance(value, str) and (scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value)):
        raise MediaError(f"{name}: {scheme[0]} addresses are not fetched. Download the file, then give its path or a "
                         "data: URL.")
    if isinstance(value, str | Path) and str(value):
        return _existing(Path(value)), str(value)
    raise MediaError(f"{name}: expected a path, a data: URL, bytes or a PIL image, found {_described(value)}.")


def open_binary(source: bytes | Path) -> BinaryIO:
    """A fresh binary stream over the source."""
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def first_bytes(source: Source) -> str:
    """What a file begins with, for messages: the quickest way to see what it really is."""
    if isinstance(source, Image.Image):
        return "a decoded image"
    with open_binary(source) as stream:
        return f"first bytes: {stream.read(8).hex(' ')}"


def _data_of_url(url: str, name: str) -> bytes:
    """Everything after the first comma is base64. The model's own examples have a blank after it."""
    header, comma, data = url.partition(",")
    if not comma:
        raise MediaError(f"{name}: the data URL {header[:40]!r} has no comma. Expected data:MIME;base64,DATA.")
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"{name}: bad base64 in the data URL ({error}). Expected data:MIME;base64,DATA.") from None


def _existing(path: Path) -> Path:
    try:
        if path.is_dir():
            return path
        if path.exists() and not path.is_file():
            raise MediaError(f"{path}: a pipe or device, which can be read only once. Save its data in a file.")
        with path.open("rb") as stream:
            is_empty = not stream.read(1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{str(path)[:200]}: cannot be opened ({reason}). Check the path.") from None
    if is_empty:
        raise MediaError(f"{path}: the file is empty.")
    return path


def _not_empty(data: bytes, name: str) -> bytes:
    if not data:
        raise MediaError(f"{name}: there is no data in it (0 bytes).")
    return data


def _described(value: Any) -> str:
    return "an empty string" if value == "" else type(value).__name__
