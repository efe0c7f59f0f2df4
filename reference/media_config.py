"""The published media settings: `media_proc_cfg` of `preprocessor_config.json`, checked before use."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .command import read_json
from .errors import ConfigError, UsageError

TIMESTAMP_MODES = ("hh:mm:ss.fff", "mm:ss.fff", "mm:ss")
WHOLE_NUMBERS = (
    "patch_size", "merge_kernel_size", "in_patch_limit", "patch_limit_on_one_side", "temporal_merge_kernel_size")
WHOLE_OR_NULL = (
    "in_patch_limit_each_frame", "in_patch_limit_video", "max_num_frames_each_video", "fixed_output_tokens")
LARGEST_UNIT = 1024  # pixels; every picture is padded to a multiple of this, so a wild value would exhaust memory


@dataclass(frozen=True)
class MediaConfig:
    """How pictures become patches, and videos become pictures. The defaults are those published with K2.5.

    Other releases of the family ship other numbers: read them from the checkpoint, `from_directory`.
    """

    patch_size: int = 14
    merge_kernel_size: int = 2              # patches along one side of a token; config.json calls the same thing [2, 2]
    in_patch_limit: int = 16384
    patch_limit_on_one_side: int = 512
    in_patch_limit_each_frame: int | None = 4096
    in_patch_limit_video: int | None = None
    sample_fps: float = 2.0
    max_num_frames_each_video: int | None = None    # published, never consulted for a video that is split into chunks
    temporal_merge_kernel_size: int = 4
    timestamp_mode: str = "hh:mm:ss.fff"
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    fixed_output_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in WHOLE_NUMBERS:
            self._require(name, _is_whole, "a whole number above 0")
        for name in WHOLE_OR_NULL:
            self._require(name, lambda value: value is None or _is_whole(value), "null or a whole number above 0")
        self._require("sample_fps", lambda rate: _is_number(rate) and rate > 0, "a number above 0")
        self._require("timestamp_mode", TIMESTAMP_MODES.__contains__, f"one of {', '.join(TIMESTAMP_MODES)}")
        self._require("image_mean", _is_rgb, "three numbers, for R, G and B")
        self._require("image_std", lambda std: _is_rgb(std) and min(std) > 0, "three numbers above 0")
        self._require("patch_size", lambda _: self.unit <= LARGEST_UNIT,
                      f"at most {LARGEST_UNIT} when multiplied by merge_kernel_size ({self.merge_kernel_size})")
        self._require("patch_limit_on_one_side", lambda limit: limit >= self.merge_kernel_size,
                      f"at least merge_kernel_size ({self.merge_kernel_size})")

    def _require(self, name: str, is_good: Callable[[Any], bool], expected: str) -> None:
        if not is_good(getattr(self, name)):
            raise ConfigError(f"media_proc_cfg: {name} is {getattr(self, name)!r}; expected {expected}.")

    @property
    def unit(self) -> int:
        """Edge of one token in pixels (28): sizes are padded to multiples of it."""
        return self.patch_size * self.merge_kernel_size

    @property
    def frame_patch_limit(self) -> int:
        """Patch budget of one video frame."""
        return self.in_patch_limit if self.in_patch_limit_each_frame is None else self.in_patch_limit_each_frame

    @classmethod
    def from_dict(cls, media_proc_cfg: dict[str, Any]) -> Self:
        """Take the mapping as published; a missing key keeps its K2.5 value. Raises ConfigError."""
        if not isinstance(media_proc_cfg, dict):
            raise ConfigError(f"media_proc_cfg: expected a mapping, found {type(media_proc_cfg).__name__}.")
        known = [field.name for field in dataclasses.fields(cls)]
        values = {key: value for key, value in media_proc_cfg.items() if key != "config_type"}    # a class, no setting
        if unknown := [str(key) for key in values if key not in known]:
            raise ConfigError(f"media_proc_cfg: unknown setting {', '.join(unknown)}. Known are {', '.join(known)}.")
        for name in ("image_mean", "image_std"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        return cls(**values)

    @classmethod
    def from_directory(cls, directory: str | Path) -> Self:
        """Read `preprocessor_config.json` of a checkpoint. Raises ConfigError."""
        path = Path(directory) / "preprocessor_config.json"
        try:
            content = read_json(path, "the media settings")
        except UsageError as error:
            raise ConfigError(str(error)) from None
        if not isinstance(content, dict) or "media_proc_cfg" not in content:
            raise ConfigError(f"{path}: has no media_proc_cfg. Expected the file as published beside the weights.")
        return cls.from_dict(content["media_proc_cfg"])


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_rgb(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(map(_is_number, value))
