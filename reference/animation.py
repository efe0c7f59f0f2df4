"""How long each frame of an animated GIF, PNG or WebP is shown: read from the file's structure, nothing decoded.

Pillow tells durations only while it decodes, which is too late to find out that a video is too long for the context.
"""

import struct
from collections.abc import Iterator
from fractions import Fraction


def frame_durations(data: bytes) -> list[Fraction] | None:
    """Seconds per frame; None if the data is no GIF, PNG or WebP, [] for a still PNG or WebP.

    Raises ValueError if the file ends too early.
    """
    try:
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return list(_gif_durations(data))
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png_durations(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return list(_webp_durations(data))
    except (IndexError, struct.error):
        raise ValueError("the file ends in the middle of a frame") from None
    return None


def _gif_durations(data: bytes) -> Iterator[Fraction]:
    """A graphic control extension (0x21 0xF9) holds the delay, in 1/100 s, of the image (0x2C) that follows it."""
    position, delay = 13 + _color_table_bytes(data[10]), 0
    while position < len(data) and data[position] != 0x3B:                 # 0x3B: the end
        if data[position] == 0x21:
            if data[position + 1] == 0xF9:
                (delay,) = struct.unpack_from("<H", data, position + 4)
            position = _after_sub_blocks(data, position + 2)
        elif data[position] == 0x2C:
            position = _after_sub_blocks(data, position + 11 + _color_table_bytes(data[position + 9]))
            yield Fraction(delay, 100)
            delay = 0
        else:
            position += 1                                                  # stray bytes; every reader skips them


def _color_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_sub_blocks(data: bytes, position: int) -> int:
    while size := data[position]:
        position += 1 + size
    return position + 1


def _png_durations(data: bytes) -> list[Fraction]:
    """An acTL chunk announces the frames; each has an fcTL chunk with its delay as a fraction of a second."""
    announced, durations, position = 0, [], 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"acTL":
            (announced,) = struct.unpack_from(">I", data, position + 8)
        elif kind == b"fcTL":
            numerator, denominator = struct.unpack_from(">HH", data, position + 28)
            durations.append(Fraction(numerator, denominator or 100))      # 0 means 100 by the standard
        position += 12 + length
    if len(durations) < announced or position > len(data):
        raise ValueError(f"the file ends after {len(durations)} of {announced} frames")
    return durations if announced else []


def _webp_durations(data: bytes) -> Iterator[Fraction]:
    """An ANMF chunk is a frame; bytes 12 to 14 of its payload are the duration in milliseconds."""
    position = 12
    while position < len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"ANMF":
            yield Fraction(int.from_bytes(data[position + 20:position + 23], "little"), 1000)
        position += 8 + length + length % 2                                # chunks are padded to even sizes
    if position > len(data) + 1:
        raise IndexError
