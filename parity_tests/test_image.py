"""Images to patches, held to the published algorithm: sizes, tokens, decoding and every bit of the pixels."""

import base64
import dataclasses
import functools
import hashlib
import io
import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from parity_tests.shape_comments import ShapeChecker
from reference import image as image_module
from reference.errors import ConfigError, MediaError, UsageError
from reference.image import MediaConfig, image_patches, open_image, plan_image, to_rgb
from reference.video import chunk_patches, plan_chunk

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "parity_tests/golden/media"
RESIZE = json.loads((GOLDEN / "resize.json").read_text(encoding="utf-8"))
PATCHIFY = json.loads((GOLDEN / "patchify.json").read_text(encoding="utf-8"))["cases"]
PUBLISHED = MediaConfig()


# -- sizes -------------------------------------------------------------------------------------------------------------


def planned(case: dict):
    config = MediaConfig.from_dict(case["config"])
    if case.get("kind") == "video_chunk":
        return plan_chunk(case["width"], case["height"], case["num_frames"], config)
    return plan_image(case["width"], case["height"], config)


def size_name(case: dict) -> str:
    return f"{case['width']}x{case['height']}"


def size_fault(case: dict) -> str | None:
    """What the plan of a golden case has wrong, or None."""
    found = {name: getattr(planned(case), name) for name in case["expected"]}
    return None if found == case["expected"] else f"{size_name(case)}: {found}, expected {case['expected']}"


@pytest.mark.parametrize("case", RESIZE["cases"], ids=size_name)
def test_sizes_and_tokens_are_the_published_ones(case):
    assert size_fault(case) is None


@pytest.mark.parametrize("case", RESIZE["invalid"], ids=size_name)
def test_sizes_that_the_published_code_cannot_handle_are_refused(case):
    with pytest.raises((MediaError, ConfigError), match=size_name(case)):
        planned(case)


class CeilingInt(int):
    def __floordiv__(self, other):
        return -(-int(self) // other)


def test_counting_started_patches_is_caught():
    """A plausible port counts patches with ceil; the golden sizes at the budget show it."""
    wrong = [plan_image(CeilingInt(case["width"]), CeilingInt(case["height"]), MediaConfig.from_dict(case["config"]))
             for case in RESIZE["cases"] if "kind" not in case]
    right = [planned(case) for case in RESIZE["cases"] if "kind" not in case]
    assert sum(a != b for a, b in zip(wrong, right, strict=True)) >= 10


def test_known_excess_over_the_budget_is_kept():
    """The budget is checked before padding and with floored counts: buffers must not be sized by it."""
    assert plan_image(489, 7081, PUBLISHED).num_patches == 17856
    assert plan_chunk(153, 6731, 1, PUBLISHED).num_patches == 5352


sides = st.integers(1, 20_000)


@given(sides, sides)
def test_plans_keep_their_bounds(width, height):
    plan = plan_image(width, height, PUBLISHED)
    frames, rows, columns = plan.grid_thw
    assert 1 <= plan.new_width <= min(width, 7168) and 1 <= plan.new_height <= min(height, 7168), "never enlarged"
    assert 0 <= plan.pad_width < 28 and 0 <= plan.pad_height < 28
    assert plan.new_width + plan.pad_width == columns * 14 and plan.new_height + plan.pad_height == rows * 14
    assert frames == 1 and rows % 2 == 0 and columns % 2 == 0 and max(rows, columns) <= 512
    assert plan.num_tokens == rows * columns // 4


@given(sides, sides, st.integers(1, 40_000), st.integers(1, 20_000))
def test_a_larger_budget_never_gives_a_smaller_picture(width, height, limit, more):
    small = plan_image(width, height, dataclasses.replace(PUBLISHED, in_patch_limit=limit))
    large = plan_image(width, height, dataclasses.replace(PUBLISHED, in_patch_limit=limit + more))
    assert small.new_width <= large.new_width and small.new_height <= large.new_height
    assert small.num_tokens <= large.num_tokens


@given(sides, sides)
def test_turning_the_picture_turns_the_plan(width, height):
    upright, turned = plan_image(width, height, PUBLISHED), plan_image(height, width, PUBLISHED)
    assert (upright.new_width, upright.new_height) == (turned.new_height, turned.new_width)


def test_a_fixed_token_count_is_reported_but_not_fed_to_the_model():
    fixed = dataclasses.replace(PUBLISHED, fixed_output_tokens=64)
    assert plan_image(640, 480, fixed).num_tokens == 64
    with pytest.raises(ConfigError, match=r"fixed_output_tokens is 64.*414 tokens"):
        image_patches(Image.new("RGB", (640, 480)), fixed)
    agreeing = dataclasses.replace(PUBLISHED, fixed_output_tokens=1)
    assert image_patches(Image.new("RGB", (28, 28)), agreeing)[0].shape == (4, 3, 14, 14)


# -- pixels ------------------------------------------------------------------------------------------------------------


def formula_picture(width: int, height: int, frame: int = 0) -> Image.Image:
    y, x, c = np.mgrid[:height, :width, :3]
    return Image.fromarray(((3 * x + 5 * y + 7 * c + 11 * frame) % 256).astype(np.uint8))


def patches_of_case(case: dict) -> tuple[np.ndarray, np.ndarray]:
    source, config = case["source"], MediaConfig.from_dict(case["config"])
    if source["kind"] == "video_chunk":
        frames = [formula_picture(source["width"], source["height"], t) for t in range(source["num_frames"])]
        items = [chunk_patches(frames, config)]
    elif source["kind"] == "file":
        items = [image_patches(open_image(base64.b64decode(source["base64"])), config)]
    else:
        sizes = source.get("sizes") or [(source["width"], source["height"])]
        items = [image_patches(formula_picture(*size), config) for size in sizes]
    pixel_values, grids = zip(*items, strict=True)
    return np.concatenate(pixel_values), np.stack(grids)


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def bytes_of(pixel_values: np.ndarray, config: dict) -> np.ndarray:
    """Undo the normalisation."""
    mean, std = (np.array(config[name]).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
    return ((pixel_values * std + mean) * 255).round().astype(np.uint8)


def pixel_fault(case: dict) -> str | None:
    """What our patches of a golden case have wrong, or None."""
    expected = case["expected"]
    pixel_values, grid_thws = patches_of_case(case)
    if pixel_values.dtype != np.float32 or list(pixel_values.shape) != expected["shape"]:
        return f"{pixel_values.dtype} {pixel_values.shape}"
    if grid_thws.dtype != np.int64 or grid_thws.tolist() != expected["grid_thws"]:
        return f"{grid_thws.dtype} {grid_thws.tolist()}"
    if sha256(bytes_of(pixel_values, case["config"])) != expected["sha256_bytes"]:
        return "other bytes"
    if any(pixel_values[tuple(probe["index"])] != np.float32(probe["value"]) for probe in expected["probes"]):
        return "other value at a probe"
    return None if sha256(pixel_values) == expected["sha256_float32"] else "other last bits"


def faults() -> dict[str, str]:
    found = {case["name"]: pixel_fault(case) for case in PATCHIFY}
    return {name: fault for name, fault in found.items() if fault}


@pytest.mark.parametrize("case", PATCHIFY, ids=lambda case: case["name"])
def test_pixels_are_the_published_ones_to_the_last_bit(case):
    assert pixel_fault(case) is None
    with np.load(GOLDEN / "patchify.npz") as arrays:
        assert np.array_equal(patches_of_case(case)[0], arrays[case["name"]])


def test_bilinear_resampling_is_caught(monkeypatch):
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, _: resize(image, size, Image.Resampling.BILINEAR))
    assert faults().keys() == {"down_sides", "down_area", "clip_down", "thin_down"}


def test_padding_with_gray_is_caught(monkeypatch):
    monkeypatch.setattr(image_module.np, "pad", functools.partial(np.pad, constant_values=127))
    assert {"one_pixel", "pad_both", "wide", "tall", "clip_4"} <= faults().keys()


def test_the_short_normalisation_is_caught(monkeypatch):
    """(byte - 127.5) / 127.5 is the same number on paper; it differs in the last bits of half of the bytes."""
    short = np.tile(((np.arange(256) - 127.5) / 127.5).astype(np.float32), (3, 1))
    assert 0 < np.abs(short - image_module.normalisation_table(PUBLISHED)).max() <= 6e-8
    assert (short != image_module.normalisation_table(PUBLISHED)).mean() == 0.5
    monkeypatch.setattr(image_module, "normalisation_table", lambda config: short)
    assert faults()["plain_28"] in ("other value at a probe", "other last bits")


def test_composited_alpha_is_caught(monkeypatch):
    monkeypatch.setattr(image_module, "to_rgb", lambda image, fixes, name: to_rgb(image, {"alpha"}, name))
    assert {"rgba_png", "la_png", "palette_transparent_png"} == faults().keys()


def test_patches_grouped_by_token_are_caught(monkeypatch):
    def grouped(pixels, patch_size):
        height, width, _ = pixels.shape
        blocks = pixels.reshape(height // 28, 2, 14, width // 28, 2, 14, 3)
        return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, 14, 14)

    monkeypatch.setattr(image_module, "cut_patches", grouped)
    assert "pad_both" in faults()


def test_tall_pictures_shrink_horizontally_first_whatever_pillow_does():
    """Pillow 13 goes vertically first here. The hash comes from one call of `resize` in Pillow 12.0."""
    noise = (np.arange(60 * 400 * 3, dtype=np.uint64) * 2654435761 >> 13).astype(np.uint8).reshape(400, 60, 3)
    plan = image_module.ImagePlan(21, 140, 0, 0, (1, 1, 1), 1)
    assert sha256(image_module.padded_bytes(Image.fromarray(noise), plan)).startswith("2df8758274849e9b")


def test_shape_comments_of_image_py_are_true():
    checker = ShapeChecker([ROOT / "reference/image.py"], ROOT)
    config = dataclasses.replace(PUBLISHED, patch_size=7)
    with checker.watching({"patch_size": 7}):
        image_patches(formula_picture(33, 57), config)
    assert checker.unmet() == []


# -- decoding ----------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


RED = encoded(Image.new("RGB", (30, 20), (255, 0, 0)))
RED_URL = base64.b64encode(RED).decode()


def test_every_kind_of_source_gives_the_same_picture(tmp_path):
    path = tmp_path / "räd image.png"
    path.write_bytes(RED)
    sources = [path, str(path), RED, bytearray(RED), Image.open(path), f"data:image/png;base64,{RED_URL}",
               f"data:image/png;base64, {RED_URL}", f"DATA:image/png;base64,{RED_URL[:40]}\n{RED_URL[40:]}"]
    assert {(picture.mode, picture.size, picture.tobytes()) for picture in map(open_image, sources)} == {
        ("RGB", (30, 20), bytes((255, 0, 0)) * 600)}


@pytest.mark.parametrize("source, message", [
    ("https://example.com/a.png", "https:// addresses are not fetched"),
    ("http://example.com/a.png", "Download the file"),
    ("ms://abc", "ms:// addresses are not fetched"),
    ("data:image/png;base64", "no comma"),
    ("data:image/png;base64,###", "bad base64"),
    ("data:image/png;base64,", "0 bytes"),
    (b"", "0 bytes"),
    ("", "an empty string"),
    (None, "NoneType"),
    (7, "int"),
    ("no/such/file.png", "No such file"),
    ("a\0b", "cannot be opened"),
    ("x" * 5000, "cannot be opened"),
    ("/dev/null", "a pipe or device"),
    (b"\0\0\0\x18ftypheic", "first bytes: 00 00 00 18 66 74 79 70"),
    (RED[:60], "truncated or damaged|not an image"),
    (RED[:30] + b"\xff" * 30 + RED[60:], "truncated or damaged|not an image"),
])
def test_unusable_sources_are_refused_with_a_reason(source, message):
    with pytest.raises(MediaError, match=message):
        open_image(source)


def test_a_folder_and_an_empty_file_are_no_images(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(MediaError, match=r"empty\.png: the file is empty"):
        open_image(tmp_path / "empty.png")
    with pytest.raises(MediaError, match="directory"):
        open_image(tmp_path)


@given(st.integers(1, 3000), st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]))
def test_a_file_cut_anywhere_is_refused(length, format):
    """Decoders can be told to fill what is missing with gray; that stays off."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    whole = encoded(noise, format)
    with pytest.raises(MediaError):
        open_image(whole[:min(length, len(whole) - 100)])


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends where its pixels would begin."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    size, checksum = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + size + header + checksum + struct.pack(">I", 10) + b"IDAT"


def test_too_many_pixels_are_refused_by_the_header_alone():
    """Nothing follows the header: an attempt to decode would fail differently."""
    with pytest.raises(MediaError, match="truncated"):
        open_image(png_header(50, 50))
    bomb = png_header(50_000, 50_000)
    with pytest.raises(MediaError, match="50000x50000 is 2500000000 pixels, more than the limit of 178956970"):
        open_image(bomb)
    with pytest.raises(MediaError, match="limit of 599"):
        open_image(RED, max_pixels=599)
    with pytest.raises(MediaError, match="limit of 599"):
        open_image(Image.new("RGB", (30, 20)), max_pixels=599)
    assert open_image(RED, max_pixels=600).size == (30, 20)


def test_the_limit_can_be_raised_above_pillows_own(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert open_image(RED).size == (30, 20)
    assert Image.MAX_IMAGE_PIXELS == 100, "the process-wide limit is left as it was"


def test_empty_pictures_are_refused():
    with pytest.raises(MediaError, match="0x10"):
        open_image(Image.new("RGB", (0, 10)))


def test_fixes_change_what_they_say_and_nothing_else(recwarn):
    clear_red = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))
    assert open_image(clear_red).getpixel((0, 0)) == (255, 0, 0)
    assert open_image(clear_red, fixes=("alpha",)).getpixel((0, 0)) == (255, 255, 255)
    deep = encoded(Image.fromarray(np.full((4, 4), 257 * 77, np.uint16)))
    assert open_image(deep).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(deep, fixes=("alpha",)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(deep, fixes=("sixteen_bit", "alpha")).getpixel((0, 0)) == (77, 77, 77)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(formula_picture(30, 20), exif=exif)
    assert open_image(turned).size == (30, 20)
    assert open_image(turned, fixes=("exif",)).size == (20, 30)
    assert open_image(RED, fixes=tuple(image_module.FIXES)).tobytes() == open_image(RED).tobytes()
    with pytest.raises(UsageError, match="unknown fix gamma; known are alpha, sixteen_bit, exif"):
        open_image(RED, fixes=("gamma",))
    assert not recwarn.list


# -- settings ----------------------------------------------------------------------------------------------------------


def test_missing_settings_keep_the_published_values(tmp_path):
    assert MediaConfig.from_dict({"config_type": "media.Config", "sample_fps": 8}).sample_fps == 8
    assert MediaConfig.from_dict(PATCHIFY[0]["config"]) == PUBLISHED
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"media_proc_cfg": {"in_patch_limit": 65536}}))
    assert MediaConfig.from_directory(tmp_path).in_patch_limit == 65536


@pytest.mark.parametrize("settings, message", [
    ({"patch_sise": 14}, "unknown setting patch_sise"),
    ({"patch_size": 0}, "patch_size is 0; expected a whole number above 0"),
    ({"patch_size": 14.0}, "patch_size is 14.0"),
    ({"patch_size": True}, "patch_size is True"),
    ({"patch_size": 10**6}, "at most 1024 when multiplied"),
    ({"merge_kernel_size": [2, 2]}, r"merge_kernel_size is \[2, 2\]"),
    ({"in_patch_limit": None}, "in_patch_limit is None"),
    ({"in_patch_limit_video": -1}, "in_patch_limit_video is -1; expected null or"),
    ({"patch_limit_on_one_side": 1}, "at least merge_kernel_size"),
    ({"sample_fps": math.nan}, "sample_fps is nan"),
    ({"sample_fps": 10**400}, "sample_fps is 1000"),
    ({"sample_fps": "2"}, "sample_fps is '2'"),
    ({"timestamp_mode": "ss"}, "timestamp_mode is 'ss'; expected one of hh:mm:ss.fff"),
    ({"timestamp_mode": ["ss"]}, "timestamp_mode"),
    ({"image_mean": [0.5, 0.5]}, "image_mean"),
    ({"image_mean": 0.5}, "image_mean is 0.5; expected three numbers"),
    ({"image_std": [0.5, 0, 0.5]}, "image_std"),
    ({"fixed_output_tokens": 0}, "fixed_output_tokens is 0"),
    ([], "expected a mapping, found list"),
])
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MediaConfig.from_dict(settings)


def test_a_directory_without_settings_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        MediaConfig.from_directory(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no media_proc_cfg"):
        MediaConfig.from_directory(tmp_path)
