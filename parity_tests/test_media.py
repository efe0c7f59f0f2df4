"""Media of whole conversations: order, documents, limits, and that nothing is decoded before it is known to fit."""

import base64
import copy
import io
import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from PIL import Image

from parity_tests.test_video import animation, frame_folder, video_file
from reference import frames
from reference import media as media_module
from reference.document import page_sizes, render_pages
from reference.errors import ConfigError, MediaError, UsageError
from reference.image import MediaConfig, image_patches
from reference.media import load_media, video_argument
from reference.tokenizer import Run

PUBLISHED = MediaConfig()
CONTEXT = 262_144


def png(color, size=(30, 20)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "PNG")
    return stream.getvalue()


def data_url(data: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


def pdf(*contents: bytes, size=(100, 50), rotate=0) -> bytes:
    """A PDF written by hand, one page for each content stream. Coordinates are points from the lower left."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>"]
    kids = b" ".join(b"%d 0 R" % (3 + 2 * i) for i in range(len(contents)))
    objects.append(b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(contents), kids))
    for i, content in enumerate(contents):
        page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 %d %d]/Rotate %d/Contents %d 0 R>>"
        objects.append(page % (*size, rotate, 4 + 2 * i))
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(content), content))
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return body + b"xref\n0 %d\n0000000000 65535 f \n%strailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1, table, len(objects) + 1, len(body))


RED_CORNER = b"1 0 0 rg 0 0 20 10 re f"       # fills 20x10 points at the lower left
BLUE_PAGE = b"0 0 1 rg 0 0 500 500 re f"


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def load(messages, max_tokens=CONTEXT, config=PUBLISHED, **options):
    return load_media(messages, config, max_tokens, **options)


# -- order and contents ------------------------------------------------------------------------------------------------


def test_conversations_without_media_need_no_settings():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}, {"role": "tool"},
                {"role": "user", "content": [{"type": "text", "text": "x"}, "bare"]}]
    media = load_media(messages, None, 10)
    assert media.messages == messages and media.pixel_values is None and media.grid_thws is None
    assert (media.tokens_per_medium, media.video_runs, media.plans) == ([], [], [])
    with pytest.raises(MediaError, match="cannot see"):
        load_media(user({"type": "image", "image": png("red")}), None, 10)


def test_media_of_all_roles_and_kinds_stand_in_reading_order():
    messages = [
        {"role": "system", "content": [{"type": "image_url", "image_url": {"url": data_url(png("red"))}}]},
        {"role": "user", "content": [
            {"type": "text", "text": "look"},
            {"type": "video_url", "video_url": {"url": data_url(animation("GIF", duration=100))}},
            {"type": "image", "image": Image.new("RGB", (60, 20), "lime")}]},
        {"role": "assistant", "content": "hm"},
        {"role": "tool", "tool_call_id": "x", "content": [
            {"type": "pdf", "pdf": pdf(BLUE_PAGE, RED_CORNER)}, {"type": "video", "video": video_file()}]},
    ]
    untouched = copy.deepcopy([message["content"] for message in messages[:1]])
    media = load(messages)
    assert media.grid_thws.dtype == np.int64 and media.pixel_values.dtype == np.float32
    assert media.grid_thws.tolist() == [[1, 2, 4], [1, 2, 4], [1, 2, 6], [1, 8, 16], [1, 8, 16], [2, 4, 4]]
    assert media.tokens_per_medium == [2, 2, 3, 32, 32, 4]
    assert media.pixel_values.shape == (8 + 8 + 12 + 128 + 128 + 32, 3, 14, 14)
    starts = np.cumsum([0, 8, 8, 12, 128, 128])
    corners = [media.pixel_values[start, :, 0, 0].round(2).tolist() for start in starts]
    assert corners[0] == [1, -1, -1] and corners[2] == [-1, 1, -1] and corners[3] == [-1, -1, 1]
    assert corners[4] == [1, 1, 1], "paper is white"
    assert [len(runs) for runs in media.video_runs] == [6, 6]
    assert messages[0]["content"] == untouched[0], "the caller's messages stay as they are"


def test_pixels_are_those_of_each_image_alone():
    pictures = [Image.effect_noise((width, 33), 90).convert("RGB") for width in (28, 57, 100)]
    media = load(user(*({"type": "image", "image": picture} for picture in pictures)))
    alone = [image_patches(picture, PUBLISHED)[0] for picture in pictures]
    assert np.array_equal(media.pixel_values, np.concatenate(alone))


def test_the_same_video_from_any_source_gives_the_same_chunks(tmp_path):
    folder = frame_folder(tmp_path / "frames")
    sources = [{"url": animation("PNG")}, {"url": str(folder), "fps": 4}, video_argument(f"{folder}@4")]
    loaded = [load(user({"type": "video", "video": source})) for source in sources]
    assert all(np.array_equal(media.pixel_values, loaded[0].pixel_values) for media in loaded)
    assert loaded[0].grid_thws.tolist() == [[2, 2, 4]] and loaded[0].plans[0]["chunks"] == [[0, 4]]


def test_video_runs_are_the_prompt_with_markers_as_control():
    config = MediaConfig(sample_fps=4.0)
    media = load(user({"type": "video", "video": animation("GIF")}), config=config)
    (runs,) = media.video_runs
    assert "".join(run.text for run in runs) == media.plans[0]["prompt"]
    assert runs[:6] == [Run("t", "00:00:00.000"), Run("s", "<|media_begin|>"), Run("t", "video"),
                        Run("s", "<|media_content|>"), Run("s", "<|media_pad|>"), Run("s", "<|media_end|>")]
    assert runs[6] == Run("t", "00:00:01.000")
    assert sum(run.text == "<|media_pad|>" for run in runs) == len(media.tokens_per_medium) == 2


def test_values_may_be_bare_or_in_a_mapping(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png("red"))
    values = [str(path), path, {"url": str(path)}, {"url": png("red"), "detail": "high"}]
    kinds = itertools.product(("image", "image_url"), values)
    media = load(user(*({"type": kind, kind: value} for kind, value in kinds)))
    assert media.grid_thws.tolist() == [[1, 2, 4]] * 8


# -- documents ---------------------------------------------------------------------------------------------------------


def test_a_document_becomes_numbered_pages_at_144_dpi():
    document = {"type": "pdf_url", "pdf_url": {"url": data_url(pdf(RED_CORNER, BLUE_PAGE))}}
    media = load(user({"type": "text", "text": "before"}, document, {"type": "text", "text": "after"}))
    content = media.messages[0]["content"]
    assert [part["type"] for part in content] == ["text", "text", "image", "text", "image", "text"]
    assert [part["text"] for part in content if part["type"] == "text"] == ["before", "Page 1:\n", "Page 2:\n", "after"]
    assert [plan["new_width"] for plan in media.plans[0]["pages"]] == [200, 200]
    assert media.grid_thws.tolist() == [[1, 8, 16]] * 2


def test_page_pictures_are_exact():
    page = next(render_pages(pdf(RED_CORNER), "doc"))
    assert (page.mode, page.size) == ("RGB", (200, 100))
    assert page.getpixel((5, 95)) == (255, 0, 0) and page.getpixel((5, 75)) == (255, 255, 255)
    assert page.getpixel((45, 95)) == (255, 255, 255)


@pytest.mark.parametrize("size, rotate", [((100, 50), 90), ((100, 50), 180), ((61, 97), 270)])
def test_planned_page_sizes_are_the_rendered_ones(size, rotate):
    data = pdf(RED_CORNER, size=size, rotate=rotate)
    assert page_sizes(data, "doc", 1, 10**6) == [next(render_pages(data, "doc")).size]


def test_documents_are_refused_before_rendering(monkeypatch):
    monkeypatch.setattr(pypdfium2.PdfPage, "render", lambda *_, **__: pytest.fail("rendered"))
    three = {"type": "pdf", "pdf": pdf(RED_CORNER, RED_CORNER, RED_CORNER)}
    with pytest.raises(MediaError, match=r"3 pages; expected 1 to 2"):
        load(user(three), max_pages=2)
    with pytest.raises(MediaError, match=r"the media take 96 tokens, at most 95 fit.*96 tokens in 3 pictures"):
        load(user(three), max_tokens=95)
    with pytest.raises(MediaError, match=r"messages\[0\]\.content\[0\], page 1: 200x100 is 20000 pixels"):
        load(user(three), max_pixels=19_999)


@pytest.mark.parametrize("source, message", [
    (png("red"), r"not a PDF that can be read.*first bytes: 89 50 4e 47"),
    (b"%PDF-1.4 nothing", "not a PDF"),
    (Image.new("RGB", (3, 3)), "must be a file"),
    (Path("."), "must be a file"),
    ("https://example.com/a.pdf", "not fetched"),
    (pdf(), "not a PDF"),
])
def test_what_is_no_document_is_refused(source, message):
    with pytest.raises(MediaError, match=message):
        load(user({"type": "pdf", "pdf": source}))


# -- limits ------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(media_module, "to_rgb", lambda *_: pytest.fail("decoded"))
    for reader in (frames.FrameFolder, frames.Animation, frames.VideoFile):
        monkeypatch.setattr(reader, "frames", lambda *_: pytest.fail("decoded"))
    video = {"type": "video", "video": animation("GIF", duration=5000)}
    image = {"type": "image", "image": png("red")}
    with pytest.raises(MediaError, match=r"take 6 tokens, at most 5 fit\. The largest is messages\[0\]\.content\[1\] "
                                         r"with 4 tokens in 2 chunks: lower sample_fps \(2\) or cut the video"):
        load(user(image, video), max_tokens=5)
    with pytest.raises(MediaError, match=r"take 6 tokens, at most 5 fit"):
        load(user(image, {"type": "video", "video": video_file()}), max_tokens=5)
    with pytest.raises(MediaError, match=r"take 4 tokens, at most 3 fit.*2 tokens in 1 pictures: send fewer"):
        load(user(image, image), max_tokens=3)


def test_what_just_fits_is_loaded():
    image = {"type": "image", "image": png("red")}
    assert sum(load(user(image, image), max_tokens=4).tokens_per_medium) == 4


@pytest.mark.parametrize("part, message", [
    ({"type": "image_url"}, r"messages\[0\]\.content\[1\]: expected a path.*NoneType"),
    ({"type": "image_url", "image_url": {"uri": "x"}}, r"content\[1\]\.image_url: has no \"url\""),
    ({"type": "image", "image": b"\0\0\0\x18ftypheic"}, r"messages\[0\]\.content\[1\]: not an image Pillow can read"),
    ({"type": "image", "image": png("red")[:60]}, r"messages\[0\]\.content\[1\]: "),
    ({"type": "image", "image": "missing.png"}, r"missing\.png: cannot be opened"),
    ({"type": "video", "video": {"url": animation("GIF"), "fps": "fast"}}, r"\.content\[1\]: fps is 'fast'"),
])
def test_errors_name_the_item(part, message):
    with pytest.raises(MediaError, match=message):
        load(user({"type": "text", "text": "x"}, part))


def test_settings_that_the_model_cannot_take_are_refused():
    image = {"type": "image", "image": png("red")}
    with pytest.raises(ConfigError, match="fixed_output_tokens is 64"):
        load(user(image), config=MediaConfig(fixed_output_tokens=64))
    with pytest.raises(MediaError, match="a chunk of 5 frames"):
        load(user({"type": "video", "video": animation("GIF")}),
             config=MediaConfig(temporal_merge_kernel_size=8, sample_fps=9.0))
    with pytest.raises(UsageError, match="unknown fix blur"):
        load(user(image), fixes=("blur",))


def test_fixes_reach_every_kind_of_medium():
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.new("RGB", (90, 20), "red").save(stream, "PNG", exif=exif)
    part = {"type": "image", "image": stream.getvalue()}
    assert load(user(part)).grid_thws.tolist() == [[1, 2, 8]]
    assert load(user(part), fixes=("exif",)).grid_thws.tolist() == [[1, 8, 2]]


def test_memory_stays_near_the_size_of_the_result():
    """The result is 56 MB of float32, and what comes on top is one image, not another copy."""
    image = {"type": "image", "image": png("red", (280, 280))}
    messages = user(*[image] * 60)
    tracemalloc.start()
    media = load(messages)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < media.pixel_values.nbytes + 5e6


@pytest.mark.parametrize("text, value", [
    ("clip.mp4", "clip.mp4"), ("me@home.mp4", "me@home.mp4"), ("frames@fast", "frames@fast"),
    ("frames@4", {"url": "frames", "fps": 4.0}), ("a@b/frames@29.97", {"url": "a@b/frames", "fps": 29.97}),
    ("@4", {"url": "", "fps": 4.0}),
])
def test_video_arguments_may_carry_a_rate(text, value):
    assert video_argument(text) == value


def test_an_existing_file_whose_name_looks_like_a_rate_is_a_file(tmp_path):
    path = tmp_path / "take@2"
    path.write_bytes(animation("GIF"))
    assert video_argument(str(path)) == str(path)
