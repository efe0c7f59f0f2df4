"""Videos to frames: folders of images, animated GIF, PNG or WebP (Pillow alone), and video files (PyAV, an extra).

Every reader knows `num_frames`, `fps` and `size` without decoding a picture, and then decodes the frames asked for,
one at a time. Source files that do not state their rate are refused unless the caller states it: timestamps follow
from the rate, and a guessed one is a wrong answer that nobody sees.
"""

import contextlib
import math
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from .animation import frame_durations
from .errors import MediaError
from .image import check_size, opened_image, shown_size, to_rgb
from .media_source import Source, first_bytes, open_binary

FRAME_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
RATE_FILE = "fps.txt"
# Containers of real video. Left out on purpose: playlists (they open other addresses) and still images (their rate
# would be made up).
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,flv,asf,ogg"
# A packet is a frame, except here: VP8 stores frames that are never shown, MPEG-4 in AVI packs two into one packet.
COUNTED_BY_DECODING = ("vp8", "mpeg4")


class FrameReader(Protocol):
    """What the three kinds of video have in common. `size` is (width, height), the same for all frames."""

    num_frames: int
    fps: float
    size: tuple[int, int]

    def frames(self, indices: list[int]) -> Iterator[Image.Image]:
        """Decode the frames at `indices`, which ascend, to RGB. Raises MediaError for damaged frames."""
        ...


def open_video(source: Source, name: str, fps: float | None, fixes: Collection[str], max_pixels: int) -> FrameReader:
    """The reader for what `source` holds. `fps` is needed where the source does not state a rate. Raises MediaError."""
    if fps is not None and not _is_rate(fps):
        raise MediaError(f"{name}: fps is {fps!r}; expected a number above 0.")
    if isinstance(source, Image.Image):
        raise MediaError(f"{name}: a decoded image is no video. Give the path or the bytes of the animation, "
                         "or a folder of frames.")
    if isinstance(source, Path) and source.is_dir():
        return _open_folder(source, name, fps, fixes, max_pixels)
    durations = _durations(source, name)
    if durations is None:
        return _open_file(source, name, fps, max_pixels)
    if not durations:
        raise MediaError(f"{name}: a still picture, not an animation. Give it as an image.")
    total = sum(durations)
    rate = _settled_rate(float(len(durations) / total) if total else None, fps, name, "an animation without durations")
    with opened_image(source, name, max_pixels) as image:
        return Animation(source, name, len(durations), rate, shown_size(image, fixes), fixes, max_pixels)


@dataclass(frozen=True)
class FrameFolder:
    """Image files in one folder, sorted by name with numbers in numerical order."""

    paths: list[Path]
    name: str
    fps: float
    size: tuple[int, int]
    fixes: Collection[str]
    max_pixels: int

    @property
    def num_frames(self) -> int:
        return len(self.paths)

    def frames(self, indices: list[int]) -> Iterator[Image.Image]:
        for index in indices:
            name = str(self.paths[index])
            with opened_image(self.paths[index], name, self.max_pixels) as image:
                frame = to_rgb(image, self.fixes, name)
            yield _same_size(frame, self.size, name)


@dataclass(frozen=True)
class Animation:
    """An animated GIF, PNG or WebP. Frames build on each other, so Pillow passes through those in between."""

    source: bytes | Path
    name: str
    num_frames: int
    fps: float
    size: tuple[int, int]
    fixes: Collection[str]
    max_pixels: int

    def frames(self, indices: list[int]) -> Iterator[Image.Image]:
        with opened_image(self.source, self.name, self.max_pixels) as image:
            # An animated PNG may carry a still for old viewers that is no frame; Pillow counts it as frame 0.
            first = int(getattr(image, "default_image", False))
            for index in indices:
                try:
                    image.seek(first + index)
                except Exception as error:  # decoders raise almost anything for damaged input
                    raise MediaError(f"{self.name}: frame {index} of {self.num_frames} cannot be read ({error}). "
                                     "Make the file again.") from None
                yield _same_size(to_rgb(image, self.fixes, self.name), self.size, self.name)


@dataclass(frozen=True)
class VideoFile:
    """MP4, MOV, WebM, MKV, AVI, MPEG, FLV, WMV or 3GP, through PyAV. Pixels as stored: no rotation is applied."""

    source: bytes | Path
    name: str
    num_frames: int
    fps: float
    size: tuple[int, int]

    def frames(self, indices: list[int]) -> Iterator[Image.Image]:
        with _opened_file(self.source, self.name) as (container, stream):
            decoded = enumerate(container.decode(stream))
            position, frame = -1, None
            for index in indices:
                while position < index:
                    position, frame = next(decoded, (self.num_frames, None))
                if frame is None:
                    raise MediaError(f"{self.name}: frame {index} of {self.num_frames} cannot be decoded. "
                                     "The file is truncated or damaged; encode it again.")
                yield _same_size(frame.to_image(), self.size, self.name)


def _open_folder(folder: Path, name: str, fps: float | None, fixes: Collection[str], max_pixels: int) -> FrameFolder:
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    paths = sorted((path for path in visible if path.suffix.lower() in FRAME_SUFFIXES), key=_numerically)
    if not paths:
        raise MediaError(f"{name}: no frames in this folder; expected files ending in {', '.join(FRAME_SUFFIXES)}.")
    rate = _settled_rate(_rate_in_file(folder), fps, name, f"a folder of frames without {RATE_FILE}")
    with opened_image(paths[0], str(paths[0]), max_pixels) as image:
        return FrameFolder(paths, name, rate, shown_size(image, fixes), fixes, max_pixels)


def _open_file(source: bytes | Path, name: str, fps: float | None, max_pixels: int) -> VideoFile:
    with _opened_file(source, name) as (container, stream):
        size, stated = (stream.width, stream.height), stream.average_rate
        check_size(size, name, max_pixels)
        if stream.codec_context.name in COUNTED_BY_DECODING:
            num_frames = sum(1 for _ in container.decode(stream))
        else:
            # Counting packets reads the file and decodes nothing. The count in the header is missing in WebM and MPEG,
            # and too high in a file that was cut off.
            num_frames = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
    if not num_frames:
        raise MediaError(f"{name}: the video has no frames.")
    rate = _settled_rate(float(stated) if stated else None, fps, name, "a video file without a frame rate")
    return VideoFile(source, name, num_frames, rate, size)


@contextlib.contextmanager
def _opened_file(source: bytes | Path, name: str) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream. Whatever PyAV raises inside becomes a MediaError."""
    try:
        import av
    except ImportError:
        raise MediaError(f"{name}: video files need PyAV: pip install 'kimi-k25-reference[media]'. "
                         "Folders of frames and animated GIF, PNG or WebP work without it.") from None
    try:
        options = {"format_whitelist": CONTAINERS}
        with open_binary(source) as file, av.open(file, container_options=options) as container:
            cover = av.stream.Disposition.attached_pic      # the picture of an album is stored as a video of one frame
            stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
            if stream is None:
                raise MediaError(f"{name}: there is no video in this file, only sound or data.")
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{name}: not a video PyAV can read ({error}; {first_bytes(source)}). "
                         "Convert it to MP4 (H.264).") from None


def _durations(source: bytes | Path, name: str) -> list | None:
    with open_binary(source) as stream:
        head = stream.read(12)
        if not head.startswith((b"GIF8", b"\x89PNG")) and head[8:] != b"WEBP":
            return None
        try:
            return frame_durations(head + stream.read())
        except ValueError as error:
            raise MediaError(f"{name}: the animation is damaged: {error}. Make the file again.") from None


def _settled_rate(stated: float | None, given: float | None, name: str, what: str) -> float:
    """The rate the source states, else the one the caller gives. A contradiction is an error, and so is neither."""
    if stated is None and given is None:
        raise MediaError(f'{name}: {what} has no rate. Give its frames per second: {name}@4 on the command line, '
                         '{"url": ..., "fps": 4} in a message.')
    if stated is not None and given is not None and not math.isclose(stated, given, rel_tol=1e-3):
        raise MediaError(f"{name}: given as {given:g} frames per second, but its own rate is {stated:g}. Leave fps "
                         "out; how many frames the model sees is set by sample_fps.")
    return float(given if stated is None else stated)


def _rate_in_file(folder: Path) -> float | None:
    path = folder / RATE_FILE
    if not path.exists():
        return None
    try:
        rate = float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        rate = math.nan
    if not _is_rate(rate):
        raise MediaError(f"{path}: expected one number above 0, the frames per second.")
    return rate


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _numerically(path: Path) -> list[tuple[int, str]]:
    """frame_9 before frame_10."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d*)", path.name)]


def _same_size(frame: Image.Image, size: tuple[int, int], name: str) -> Image.Image:
    if frame.size != size:
        raise MediaError(f"{name}: a frame of {frame.width}x{frame.height} in a video of {size[0]}x{size[1]}. "
                         "All frames must have one size; scale them first.")
    return frame
