"""Pictures to patches: decode, shrink, pad, normalise, cut. Exactly as published, with numpy and Pillow.

A *patch* is 14x14 pixels; a *token* of the prompt is 2x2 patches = 28x28 pixels. Numbers here are those of K2.5.
Source: the image processor published with moonshotai/Kimi-K2.5.
"""
# N patches of one item   T its frames   F patches of one frame   P patch_size
# H padded height   W padded width   G patch rows   Q patch columns

import contextlib
import math
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .errors import ConfigError, MediaError, UsageError
from .media_config import MediaConfig
from .media_source import Source, first_bytes, open_binary, resolve

# What the published code does to unusual files, and what each fix does instead. A fix changes what the model sees,
# away from what it was trained on, so none is on unless asked for.
FIXES = {
    "alpha": "composite transparent pictures on white (published: alpha is dropped, hidden colours show)",
    "sixteen_bit": "scale 16-bit gray by 1/257 (published: values above 255 are clipped, most turns white)",
    "exif": "turn the picture as its EXIF orientation says (published: ignored)",
}
DEFAULT_MAX_PIXELS = 178_956_970    # where Pillow itself refuses, as it does under the published code
EXIF_ORIENTATION = 0x0112
_pillow_lock = threading.Lock()


@dataclass(frozen=True)
class ImagePlan:
    """Sizes of one item before a pixel is touched. `grid_thw` counts patches: (frames, rows, columns)."""

    new_width: int
    new_height: int
    pad_width: int
    pad_height: int
    grid_thw: tuple[int, int, int]
    num_tokens: int

    @property
    def num_patches(self) -> int:
        return math.prod(self.grid_thw)


def plan_image(width: int, height: int, config: MediaConfig) -> ImagePlan:
    """Resized size, padding, patch grid and token count of an image. Raises MediaError or ConfigError."""
    return plan_item(width, height, 1, config.in_patch_limit, config)


def plan_item(width: int, height: int, num_frames: int, patch_limit: int, config: MediaConfig) -> ImagePlan:
    """The rule that images and video chunks share. All in double precision, in the published order of operations."""
    if width < 1 or height < 1:
        raise MediaError(f"an image of {width}x{height} pixels is empty; each side needs at least 1.")
    # Patches are counted with floor and before padding, so the padded grid may exceed patch_limit (17856 for 489x7081).
    cells = max(1, width // config.patch_size) * max(1, height // config.patch_size)
    longest = config.patch_limit_on_one_side * config.patch_size
    scale = min(1.0, math.sqrt(patch_limit / cells), longest / width, longest / height)
    # width * (longest / width) can fall a hair below `longest` and be cut to one pixel less. Published, so kept.
    new_width = min(longest, max(1, int(width * scale)))
    new_height = min(longest, max(1, int(height * scale)))
    pad_width, pad_height = -new_width % config.unit, -new_height % config.unit
    rows = (new_height + pad_height) // config.patch_size
    columns = (new_width + pad_width) // config.patch_size
    if max(rows, columns) > config.patch_limit_on_one_side:
        raise ConfigError(
            f"patch_limit_on_one_side is {config.patch_limit_on_one_side}, but an image of {width}x{height} is padded "
            f"to {columns}x{rows} patches. Use a multiple of merge_kernel_size ({config.merge_kernel_size}).")
    merged = (rows // config.merge_kernel_size) * (columns // config.merge_kernel_size)
    num_tokens = config.fixed_output_tokens or merged
    return ImagePlan(new_width, new_height, pad_width, pad_height, (num_frames, rows, columns), num_tokens)


def require_true_count(plan: ImagePlan, config: MediaConfig) -> None:
    """With `fixed_output_tokens` a plan reports that number; the model still makes one feature per 2x2 patches."""
    _, rows, columns = plan.grid_thw
    merged = (rows // config.merge_kernel_size) * (columns // config.merge_kernel_size)
    if plan.num_tokens != merged:
        raise ConfigError(
            f"fixed_output_tokens is {plan.num_tokens}, but a grid of {columns}x{rows} patches gives {merged} tokens: "
            "placeholders and image features would not match. Set fixed_output_tokens to null.")


# -- decoding ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened_image(source: Source, name: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> Iterator[Image.Image]:
    """The image with its header read and its size checked, pixels not yet decoded. Raises MediaError."""
    if isinstance(source, Image.Image):
        check_size(source.size, name, max_pixels)
        yield source
        return
    try:
        stream = open_binary(source)
    except OSError as error:
        raise MediaError(f"{name}: cannot be opened as an image ({error.strerror}).") from None
    with stream:
        try:
            image = _open_header(stream)
        except Exception:  # decoders of a dozen formats: damaged input makes them raise almost anything
            raise MediaError(f"{name}: not an image Pillow can read ({first_bytes(source)}). "
                             "Convert it to PNG or JPEG.") from None
        with image:
            check_size(image.size, name, max_pixels)
            yield image


def open_image(source: Any, fixes: Collection[str] = (), max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decode a path, bytes, a data URL or a PIL image to RGB as published; `fixes` are names in FIXES."""
    source, name = resolve(source, "image")
    with opened_image(source, name, max_pixels) as image:
        return to_rgb(image, fixes, name)


def to_rgb(image: Image.Image, fixes: Collection[str], name: str) -> Image.Image:
    """Pillow's plain `convert("RGB")` and, only where asked for, the fixes. Raises MediaError for damaged pixels."""
    check_fixes(fixes)
    try:
        if "exif" in fixes:
            image = ImageOps.exif_transpose(image)
        if "sixteen_bit" in fixes and image.mode.startswith("I"):
            gray = np.rint(np.asarray(image, dtype=np.float64) / 257)
            image = Image.fromarray(gray.clip(0, 255).astype(np.uint8))
        if "alpha" in fixes and image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if isinstance(image.info.get("transparency"), bytes):
            image = image.copy()  # a palette of alphas: Pillow would warn that convert("RGB") drops it. So it should.
            del image.info["transparency"]
        return image.convert("RGB")
    except Exception as error:  # see opened_image
        raise MediaError(f"{name}: the picture is truncated or damaged ({error}). Make the file again.") from None


def shown_size(image: Image.Image, fixes: Collection[str]) -> tuple[int, int]:
    """(width, height) that `to_rgb` will give, from the header."""
    with contextlib.suppress(Exception):  # damaged EXIF counts as none, as it does for ImageOps
        if "exif" in fixes and image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8):
            return image.height, image.width
    return image.size


def check_fixes(fixes: Collection[str]) -> None:
    """Raises UsageError for a name that is not in FIXES."""
    if unknown := [fix for fix in fixes if fix not in FIXES]:
        raise UsageError(f"unknown fix {', '.join(map(str, unknown))}; known are {', '.join(FIXES)}.")


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Refuse empty and oversized pictures by their header, before any memory is spent on them."""
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"{name}: the picture is {width}x{height} pixels; each side needs at least 1.")
    if width * height > max_pixels:
        raise MediaError(f"{name}: {width}x{height} is {width * height} pixels, more than the limit of {max_pixels}. "
                         "Shrink the picture, or raise max_pixels if you trust the file.")


def _open_header(stream: Any) -> Image.Image:
    # Pillow's own limit is a global variable and cannot be raised per call: check_size applies ours to the same header.
    # Its warnings about odd metadata would stand between a user and the one line that says what is wrong.
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(stream)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


# -- pixels to patches -------------------------------------------------------------------------------------------------


def image_patches(image: Image.Image, config: MediaConfig) -> tuple[np.ndarray, np.ndarray]:
    """One RGB image to `pixel_values` float32 (N, 3, P, P) and its row of `grid_thws`, int64 (3,)."""
    plan = plan_image(image.width, image.height, config)
    return patches_of([image], plan, config)


def patches_of(pictures: Iterable[Image.Image], plan: ImagePlan, config: MediaConfig) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of one item, all to the size of `plan`, in an array of their own."""
    require_true_count(plan, config)
    pixel_values = np.empty((plan.num_patches, 3, config.patch_size, config.patch_size), np.float32)   # (N, 3, P, P)
    write_patches(pictures, plan, config, pixel_values)
    return pixel_values, np.array(plan.grid_thw, np.int64)


def write_patches(pictures: Iterable[Image.Image], plan: ImagePlan, config: MediaConfig, out: np.ndarray) -> None:
    """Fill `out` (N, 3, P, P) with one item: frame after frame, patches in raster order, channels R, G, B inside."""
    num_frames, rows, columns = plan.grid_thw
    table = normalisation_table(config)                                                                # (3, 256)
    frames = out.reshape(num_frames, rows * columns, 3, config.patch_size, config.patch_size)          # (T, F, 3, P, P)
    for picture, frame in zip(pictures, frames, strict=True):
        patches = cut_patches(padded_bytes(picture, plan), config.patch_size)                          # (F, 3, P, P)
        for channel in range(3):
            frame[:, channel] = table[channel][patches[:, channel]]


def padded_bytes(picture: Image.Image, plan: ImagePlan) -> np.ndarray:
    """Resize an RGB picture and add black at the right and at the bottom. Returns uint8 (H, W, 3).

    Black is byte 0, added before normalisation: padding is -1.0 for the model, not 0.0.
    """
    # Two calls, since the passes do not commute: each rounds to bytes. Pillow up to 12, which the published code ran
    # on, always goes horizontally first; Pillow 13 turns the order round for tall pictures.
    picture = picture.resize((plan.new_width, picture.height), Image.Resampling.BICUBIC)
    picture = picture.resize((plan.new_width, plan.new_height), Image.Resampling.BICUBIC)
    return np.pad(np.asarray(picture), ((0, plan.pad_height), (0, plan.pad_width), (0, 0)))            # (H, W, 3)


def cut_patches(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """(H, W, 3) to (G*Q, 3, P, P) in raster order; the 2x2 blocks of a token are not neighbours here."""
    height, width, channels = pixels.shape
    rows, columns = height // patch_size, width // patch_size
    blocks = pixels.reshape(rows, patch_size, columns, patch_size, channels)                           # (G, P, Q, P, 3)
    return blocks.transpose(0, 2, 4, 1, 3).reshape(-1, channels, patch_size, patch_size)               # (G*Q, 3, P, P)


def normalisation_table(config: MediaConfig) -> np.ndarray:
    """(byte / 255 - mean) / std for each channel and byte, with the published roundings. Returns float32 (3, 256).

    Each step is one operation in double, rounded to float32. The shorter (byte - 127.5) / 127.5 has other last bits
    for half of the bytes.
    """
    scaled = np.float32(np.arange(256) / 255).astype(np.float64)                                       # (256)
    centred = [np.float32(scaled - mean).astype(np.float64) for mean in config.image_mean]             # 3 of (256)
    rows = [np.float32(row * (1 / std)) for row, std in zip(centred, config.image_std, strict=True)]
    return np.stack(rows)                                                                              # (3, 256)
