"""Videos: which frames the model sees, how they are grouped, timed and written into the prompt.

Four sampled frames make a chunk; the tower averages them over time, so a chunk costs the tokens of one picture.
Reading frames from files is in frames.py.
Source: the processor published with moonshotai/Kimi-K2.5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .errors import MediaError
from .image import ImagePlan, patches_of, plan_item
from .media_config import MediaConfig

MEDIA_BEGIN, MEDIA_CONTENT, MEDIA_END = "<|media_begin|>", "<|media_content|>", "<|media_end|>"
MEDIA_PAD = "<|media_pad|>"
MAX_CHUNK_FRAMES = 4                # rows of the position table over time
MAX_SAMPLED_FRAMES = 4 * 262_144    # at one token per chunk of four these fill the published context


@dataclass(frozen=True)
class VideoPlan:
    """Frame indices and timestamp of each chunk; `chunk_plans` holds their sizes if the frame size is known."""

    chunks: list[list[int]]
    timestamps: list[str]
    chunk_plans: list[ImagePlan] | None

    @property
    def indices(self) -> list[int]:
        return [index for chunk in self.chunks for index in chunk]

    @property
    def prompt(self) -> str:
        """One `<|media_pad|>` per chunk, as the published processor leaves it."""
        return "".join(chunk_prompt(timestamp, 1) for timestamp in self.timestamps)

    @property
    def grid_thws(self) -> list[tuple[int, int, int]]:
        return [plan.grid_thw for plan in self.chunk_plans or []]

    @property
    def tokens_per_chunk(self) -> list[int]:
        return [plan.num_tokens for plan in self.chunk_plans or []]

    @property
    def prompt_expanded(self) -> str:
        """As many `<|media_pad|>` as a chunk has tokens, as the decoder wants it."""
        return "".join(map(chunk_prompt, self.timestamps, self.tokens_per_chunk))

    def described(self) -> dict[str, Any]:
        """For JSON. Sizes only if the frame size is known."""
        plan = {"chunks": self.chunks, "timestamps": self.timestamps, "prompt": self.prompt}
        sizes = ("grid_thws", "tokens_per_chunk", "prompt_expanded") if self.chunk_plans is not None else ()
        return plan | {name: getattr(self, name) for name in sizes}


def plan_video(num_frames: int, fps: float, config: MediaConfig,
               frame_size: tuple[int, int] | None = None) -> VideoPlan:
    """Choose frames and group them. `frame_size` is (width, height). Raises MediaError."""
    indices = sample_frames(num_frames, fps, config)
    size = config.temporal_merge_kernel_size
    chunks = [indices[start:start + size] for start in range(0, len(indices), size)]
    timestamps = [format_timestamp(chunk[0] / fps, config.timestamp_mode) for chunk in chunks]
    chunk_plans = None if frame_size is None else [plan_chunk(*frame_size, len(chunk), config) for chunk in chunks]
    return VideoPlan(chunks, timestamps, chunk_plans)


def sample_frames(num_frames: int, fps: float, config: MediaConfig) -> list[int]:
    """Evenly spaced indices, first and last frame included, `sample_fps` a second or all there are."""
    if num_frames < 1:
        raise MediaError(f"a video of {num_frames} frames has nothing to show; expected at least 1.")
    if not (math.isfinite(fps) and fps > 0):
        raise MediaError(f"a rate of {fps} frames per second; expected a number above 0.")
    if not math.isfinite(num_frames / fps):
        raise MediaError(f"{num_frames} frames at {fps} per second last for ever; expected a rate of a real video.")
    wanted = num_frames * min(config.sample_fps, fps) / fps
    if wanted > MAX_SAMPLED_FRAMES:
        raise MediaError(f"{num_frames} frames at {fps:g} per second give {wanted:.0f} sampled frames; the context "
                         f"holds {MAX_SAMPLED_FRAMES}. Lower sample_fps ({config.sample_fps:g}) or cut the video.")
    # Python's round and numpy's both send halves to the even neighbour, as published.
    return np.linspace(0, num_frames - 1, max(1, round(wanted))).round().astype(np.int64).tolist()


def plan_chunk(width: int, height: int, num_frames: int, config: MediaConfig) -> ImagePlan:
    """Size of a chunk, decided by its first frame. Later models share one budget between the frames of a chunk."""
    limit = config.frame_patch_limit
    if config.in_patch_limit_video is not None:
        limit = min(round(config.in_patch_limit_video / num_frames), limit)
    return plan_item(width, height, num_frames, limit, config)


def format_timestamp(seconds: float, mode: str) -> str:
    """`hh:mm:ss.fff` and its shorter forms, with the published roundings.

    The clock comes from the time rounded to microseconds, the milliseconds are cut from the unrounded one. So 6.3 s
    reads 00:00:06.299, and 1000.9999999999999 s reads 00:16:41.999, almost a second late. The model was trained on it.
    """
    fraction, whole = math.modf(seconds)
    clock = int(whole) + (round(fraction * 1e6) >= 1_000_000)
    text = f"{clock // 60 % 60:02d}:{clock % 60:02d}"
    if mode.startswith("hh"):
        text = f"{clock // 3600 % 24:02d}:{text}"
    return f"{text}.{int(fraction * 1000):03d}" if mode.endswith("fff") else text


def chunk_prompt(timestamp: str, num_pads: int) -> str:
    return f"{timestamp}{MEDIA_BEGIN}video{MEDIA_CONTENT}{MEDIA_PAD * num_pads}{MEDIA_END}"


def chunk_patches(frames: Sequence[Image.Image], config: MediaConfig) -> tuple[np.ndarray, np.ndarray]:
    """The RGB frames of one chunk to `pixel_values` float32 (N, 3, P, P) and its row of `grid_thws`, int64 (3,)."""
    require_time_rows(len(frames))
    return patches_of(frames, plan_chunk(*frames[0].size, len(frames), config), config)


def require_time_rows(num_frames: int) -> None:
    """Raises MediaError if a chunk has more frames than the model has positions in time."""
    if not 1 <= num_frames <= MAX_CHUNK_FRAMES:
        raise MediaError(f"a chunk of {num_frames} frames; the model has positions for 1 to {MAX_CHUNK_FRAMES}. "
                         "Lower temporal_merge_kernel_size.")
