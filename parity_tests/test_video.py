"""Videos: published frame choice, timestamps and prompts; readers for folders, animations and video files."""

import io
import json
import struct
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reference import frames as frames_module
from reference import video as video_module
from reference.errors import MediaError
from reference.frames import open_video
from reference.image import DEFAULT_MAX_PIXELS, MediaConfig
from reference.media_source import resolve
from reference.video import chunk_patches, format_timestamp, plan_chunk, plan_video, sample_frames

GOLDEN = Path(__file__).parent / "golden/media"
CASES = json.loads((GOLDEN / "video.json").read_text(encoding="utf-8"))["cases"]
PUBLISHED = MediaConfig()
GRAYS = [10, 60, 110, 160, 210]


# -- plan --------------------------------------------------------------------------------------------------------------


def case_name(case: dict) -> str:
    return f"{case['num_frames']}@{case['fps']:.5g}-{case['config']['timestamp_mode']}"


def plan_fault(case: dict) -> str | None:
    """What the plan of a golden case has wrong, or None."""
    frame_size = (case["frame_width"], case["frame_height"]) if "frame_width" in case else None
    plan = plan_video(case["num_frames"], case["fps"], MediaConfig.from_dict(case["config"]), frame_size)
    found = json.loads(json.dumps(plan.described()))
    wrong = [name for name, value in case["expected"].items() if found[name] != value]
    return ", ".join(wrong) or None


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_plans_are_the_published_ones(case):
    assert plan_fault(case) is None


def test_rounding_the_milliseconds_is_caught(monkeypatch):
    def rounded(seconds, mode):
        clock, milliseconds = divmod(round(seconds * 1000), 1000)
        return f"{clock // 3600 % 24:02d}:{clock // 60 % 60:02d}:{clock % 60:02d}.{milliseconds:03d}"

    assert rounded(6.3, "") == "00:00:06.300" and format_timestamp(6.3, "hh:mm:ss.fff") == "00:00:06.299"
    monkeypatch.setattr(video_module, "format_timestamp", rounded)
    assert any(plan_fault(case) for case in CASES)


def test_other_frame_choices_are_caught(monkeypatch):
    """`floor(i * n / k)`, as the native processor of transformers has it, misses the last frame."""
    def floored(num_frames, fps, config):
        count = max(1, int(num_frames / fps * config.sample_fps))
        return [i * num_frames // count for i in range(count)]

    monkeypatch.setattr(video_module, "sample_frames", floored)
    assert sum("chunks" in (plan_fault(case) or "") for case in CASES) > 5


@pytest.mark.parametrize("index, fps, mode, text", [
    (63, 10.0, "hh:mm:ss.fff", "00:00:06.299"),
    (24000, 24000 / 1001, "hh:mm:ss.fff", "00:16:41.999"),      # almost a second late, as published
    (24000, 24000 / 1001, "mm:ss", "16:41"),
    (3600 * 25 + 61, 1.0, "hh:mm:ss.fff", "01:01:01.000"),      # hours modulo 24
    (3600 + 61, 1.0, "mm:ss.fff", "01:01.000"),                 # minutes modulo 60 without the hours
    (0, 0.1, "hh:mm:ss.fff", "00:00:00.000"),
])
def test_timestamp_quirks_are_kept(index, fps, mode, text):
    assert format_timestamp(index / fps, mode) == text


@given(st.integers(1, 100_000), st.floats(0.1, 240), st.floats(0.1, 10))
def test_sampled_frames_ascend_from_the_first_to_the_last(num_frames, fps, sample_fps):
    indices = sample_frames(num_frames, fps, MediaConfig(sample_fps=sample_fps))
    assert indices[0] == 0 and sorted(set(indices)) == indices
    assert len(indices) == 1 or indices[-1] == num_frames - 1
    assert len(indices) <= num_frames
    if sample_fps >= fps:
        assert indices == list(range(num_frames))


@pytest.mark.parametrize("num_frames, fps, message", [
    (0, 30.0, "0 frames"), (10, 0.0, "0.0 frames per second"), (10, float("nan"), "nan frames per second"),
    (10**12, 30.0, "Lower sample_fps"),
])
def test_impossible_videos_are_refused(num_frames, fps, message):
    with pytest.raises(MediaError, match=message):
        plan_video(num_frames, fps, PUBLISHED)


def test_a_chunk_has_at_most_the_frames_the_position_table_knows():
    pictures = [Image.new("RGB", (28, 28))] * 5
    assert chunk_patches(pictures[:4], PUBLISHED)[1].tolist() == [4, 2, 2]
    with pytest.raises(MediaError, match="a chunk of 5 frames; the model has positions for 1 to 4"):
        chunk_patches(pictures, PUBLISHED)
    with pytest.raises(MediaError, match="a chunk of 0 frames"):
        chunk_patches([], PUBLISHED)


def test_later_models_share_a_budget_inside_a_chunk():
    shared = MediaConfig(in_patch_limit=65536, in_patch_limit_each_frame=None, in_patch_limit_video=655360)
    assert plan_chunk(1920, 1080, 4, shared).new_width == 1920
    assert plan_chunk(1920, 1080, 4, MediaConfig(in_patch_limit_video=4096)).new_width == 598


# -- readers -----------------------------------------------------------------------------------------------------------


def opened(value, fps=None, fixes=(), max_pixels=DEFAULT_MAX_PIXELS):
    return open_video(*resolve(value, "clip"), fps, fixes, max_pixels)


def grays_of(reader, indices=range(5)) -> list[int]:
    return [frame.getpixel((3, 3))[0] for frame in reader.frames(list(indices))]


def pictures(size=(40, 24)) -> list[Image.Image]:
    return [Image.new("RGB", size, (gray,) * 3) for gray in GRAYS]


def animation(format: str, duration=250, images=None, **options) -> bytes:
    first, *others = images or pictures()
    stream = io.BytesIO()
    first.save(stream, format, save_all=True, append_images=others, duration=duration, **options)
    return stream.getvalue()


def video_file(format="mp4", codec="libx264", num_frames=5, size=(48, 32)) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format=format) as container:
        track = container.add_stream(codec, rate=4)
        track.width, track.height = size
        track.pix_fmt = "yuv420p"
        for picture in pictures(size)[:num_frames]:
            container.mux(track.encode(av.VideoFrame.from_image(picture)))
        container.mux(track.encode())
    return stream.getvalue()


def frame_folder(folder: Path, count=5, size=(40, 24)) -> Path:
    folder.mkdir()
    for number, picture in enumerate(pictures(size)[:count], start=8):     # frame_8, frame_9, frame_10, ...
        picture.save(folder / f"frame_{number}.png")
    (folder / "notes.md").write_text("not a frame")
    (folder / "._frame_9.png").write_text("what some systems leave beside a copied file")
    return folder


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_animations_are_read_with_pillow_alone(format, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    data = animation(format, **({"lossless": True} if format == "WEBP" else {}))
    path = tmp_path / "clip"
    path.write_bytes(data)
    for source in (data, path):
        reader = opened(source)
        assert (reader.num_frames, reader.fps, reader.size) == (5, 4.0, (40, 24))
        assert grays_of(reader) == GRAYS
        assert grays_of(reader, [1, 4]) == [60, 210], "a reader can be used again"


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_varying_durations_give_the_average_rate(format):
    assert opened(animation(format, duration=[100, 200, 300, 400, 1000])).fps == 2.5


def test_a_still_for_old_viewers_is_no_frame_of_an_animated_png():
    still = Image.new("RGB", (40, 24), "red")
    reader = opened(animation("PNG", images=[still, *pictures()], default_image=True))
    assert reader.num_frames == 5 and grays_of(reader) == GRAYS


def test_an_animation_without_durations_needs_a_rate():
    endless = animation("GIF", duration=0)
    with pytest.raises(MediaError, match=r"an animation without durations has no rate.*clip@4 on the command"):
        opened(endless)
    assert opened(endless, fps=8).fps == 8.0


def test_fixes_apply_to_animations_too():
    clear = [Image.new("RGBA", (8, 8), (gray, 0, 0, 0)) for gray in GRAYS]
    data = animation("PNG", images=clear)
    assert grays_of(opened(data), [2]) == [110]
    assert grays_of(opened(data, fixes=("alpha",)), [2]) == [255]
    exif = Image.Exif()
    exif[0x0112] = 6
    assert next(opened(animation("WEBP", exif=exif), fixes=("exif",)).frames([3])).size == (24, 40)


@given(cut=st.floats(0.01, 0.9), format=st.sampled_from(["GIF", "PNG", "WEBP"]))
def test_a_cut_animation_is_refused_or_shorter_but_never_a_crash(cut, format):
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 40, 3), np.uint8)) for i in range(3)]
    data = animation(format, images=noise)
    try:
        reader = opened(data[:int(len(data) * cut)])
        assert reader.num_frames < 3
    except MediaError:
        pass


@given(st.binary(max_size=60), st.sampled_from([b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b""]))
def test_random_bytes_are_refused(data, head):
    with pytest.raises(MediaError):
        opened(head + data)


def test_a_folder_of_frames_is_sorted_by_number_and_needs_a_rate(tmp_path):
    folder = frame_folder(tmp_path / "frames")
    with pytest.raises(MediaError, match=r"without fps\.txt has no rate.*frames@4 on the command line"):
        opened(folder)
    reader = opened(folder, fps=4)
    assert (reader.num_frames, reader.fps, reader.size) == (5, 4.0, (40, 24))
    assert grays_of(reader) == GRAYS
    (folder / "fps.txt").write_text("12.5\n")
    assert opened(folder).fps == 12.5
    (folder / "fps.txt").write_text("fast")
    with pytest.raises(MediaError, match=r"fps\.txt: expected one number above 0"):
        opened(folder)


def test_only_sampled_files_of_a_folder_are_opened(tmp_path):
    folder = frame_folder(tmp_path / "frames")
    (folder / "frame_9.png").write_bytes(b"damaged")
    reader = opened(folder, fps=4)
    assert grays_of(reader, [0, 2, 4]) == [10, 110, 210]
    with pytest.raises(MediaError, match=r"frame_9\.png: not an image"):
        grays_of(reader)


def test_frames_of_another_size_are_refused(tmp_path):
    folder = frame_folder(tmp_path / "frames")
    Image.new("RGB", (41, 24)).save(folder / "frame_11.png")
    with pytest.raises(MediaError, match=r"frame_11\.png: a frame of 41x24 in a video of 40x24"):
        grays_of(opened(folder, fps=4))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(MediaError, match="no frames in this folder"):
        opened(tmp_path, fps=4)


@pytest.mark.parametrize("format, codec", [
    ("mp4", "libx264"), ("mov", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9"), ("webm", "libvpx"),
    ("avi", "mpeg4"), ("mpegts", "libx264"), ("flv", "flv"), ("asf", "wmv2")])
def test_video_files_are_read_with_pyav(format, codec):
    reader = opened(video_file(format, codec))
    assert (reader.num_frames, reader.fps, reader.size) == (5, 4.0, (48, 32))
    assert np.abs(np.subtract(grays_of(reader), GRAYS)).max() <= 6, "lossy, but the right frames in the right order"
    assert np.abs(np.subtract(grays_of(reader, [1, 4]), [60, 210])).max() <= 6


def test_a_missing_pyav_is_named_with_its_remedy(monkeypatch):
    data = video_file()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r"pip install 'kimi-k25-reference\[media\]'"):
        opened(data)


def test_a_truncated_video_file_is_refused():
    data = video_file("mp4")
    with pytest.raises(MediaError, match="not a video PyAV can read"):
        opened(data[:len(data) // 2])


def test_frames_that_the_decoder_does_not_deliver_are_named():
    reader = opened(video_file())
    longer = frames_module.VideoFile(reader.source, "clip", 9, reader.fps, reader.size)
    with pytest.raises(MediaError, match="frame 8 of 9 cannot be decoded"):
        grays_of(longer, [0, 8])


def test_sound_and_stills_and_playlists_are_no_videos(tmp_path):
    silence = io.BytesIO()
    with av.open(silence, "w", format="mov") as container:
        track = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="stereo", samples=800)
        frame.sample_rate = 8000
        container.mux(track.encode(frame))
    still = io.BytesIO()
    pictures()[0].save(still, "JPEG")
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    with pytest.raises(MediaError, match="no video in this file"):
        opened(silence.getvalue())
    for data in (still.getvalue(), playlist):
        with pytest.raises(MediaError, match=r"not a video PyAV can read.*first bytes"):
            opened(data)
    for format in ("PNG", "WEBP"):
        still = io.BytesIO()
        pictures()[0].save(still, format)
        with pytest.raises(MediaError, match="a still picture, not an animation"):
            opened(still.getvalue())
    with pytest.raises(MediaError, match="a decoded image is no video"):
        opened(pictures()[0])


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 10**400, "4", True])
def test_a_rate_must_be_a_number_above_zero(fps):
    with pytest.raises(MediaError, match=r"fps is .*expected a number above 0"):
        opened(animation("GIF"), fps=fps)


def test_a_rate_that_contradicts_the_file_is_refused():
    """Other interfaces call the sampling rate `fps`: taken as the video's own rate it would falsify every timestamp."""
    assert opened(video_file(), fps=4).fps == 4.0
    with pytest.raises(MediaError, match="given as 2 frames per second, but its own rate is 4"):
        opened(video_file(), fps=2)


def test_the_pixel_limit_holds_for_videos():
    for data in (video_file(), animation("GIF")):
        with pytest.raises(MediaError, match="more than the limit of 900"):
            opened(data, max_pixels=900)


def test_gif_structure_is_walked_past_stray_bytes_and_local_palettes():
    rng = np.random.default_rng(0)
    colorful = [Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8)) for _ in range(4)]
    data = animation("GIF", duration=500, images=colorful)
    assert opened(data[:-1] + b"\0\0;").num_frames == 4
    assert opened(data[:-1]).fps == 2.0, "the final byte may be missing"


def test_a_delay_with_denominator_zero_counts_hundredths():
    data = bytearray(animation("PNG", duration=250))
    position = data.find(b"fcTL")
    while position >= 0:
        data[position + 24:position + 28] = struct.pack(">HH", 50, 0)
        data[position + 30:position + 34] = struct.pack(">I", zlib.crc32(data[position:position + 30]))
        position = data.find(b"fcTL", position + 1)
    assert opened(bytes(data)).fps == 2.0
