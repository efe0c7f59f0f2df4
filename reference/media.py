"""All media of a conversation, in reading order: planned from headers first, then decoded into one array.

Nothing is decoded before the token count is known to fit, and one picture at a time is held beside the result.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .document import DEFAULT_MAX_PAGES, page_sizes, render_pages
from .errors import MediaError
from .frames import open_video
from .image import (
    DEFAULT_MAX_PIXELS,
    ImagePlan,
    check_fixes,
    opened_image,
    plan_image,
    require_true_count,
    shown_size,
    to_rgb,
    write_patches,
)
from .media_config import MediaConfig
from .media_source import Source, resolve
from .tokenizer import Run
from .video import MEDIA_BEGIN, MEDIA_CONTENT, MEDIA_END, MEDIA_PAD, VideoPlan, plan_video, require_time_rows

KINDS = {"image": "image", "image_url": "image", "video": "video", "video_url": "video", "pdf": "pdf", "pdf_url": "pdf"}

Message = dict[str, Any]


@dataclass(frozen=True)
class Medium:
    """One image, video or document. `items` are its rows of `grid_thws`; `pictures` decodes it anew at each call."""

    name: str
    items: list[ImagePlan]
    described: dict[str, Any]
    pictures: Callable[[], Iterator[Image.Image]]
    video_plan: VideoPlan | None = None

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)


@dataclass(frozen=True)
class Media:
    """What the model gets: `pixel_values` float32 (N, 3, P, P), `grid_thws` int64 (M, 3); both None without media.

    `messages` are those given, with documents turned into page numbers and images. `tokens_per_medium` has one number
    per row of `grid_thws`, that is, per `<|media_pad|>` of the prompt. `video_runs` has each video's chunk prompts.
    `plans` describes each image, video and document for JSON.
    """

    messages: list[Message]
    pixel_values: np.ndarray | None = None
    grid_thws: np.ndarray | None = None
    tokens_per_medium: list[int] = field(default_factory=list)
    video_runs: list[list[Run]] = field(default_factory=list)
    plans: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Loader:
    """The settings, and how each kind of content part is planned with them."""

    config: MediaConfig
    fixes: Collection[str]
    max_pixels: int
    max_pages: int

    def medium(self, part: dict[str, Any], where: str) -> Medium:
        """Plan one content part from its header. Raises MediaError."""
        value, fps = _value_and_fps(part, where)
        source, name = resolve(value, where)
        match KINDS[part["type"]]:
            case "image":
                medium = self.image(source, name)
            case "video":
                medium = self.video(source, name, fps)
            case _:
                medium = self.document(source, name)
        for item in medium.items:
            require_true_count(item, self.config)
            require_time_rows(item.grid_thw[0])
        return medium

    def image(self, source: Source, name: str) -> Medium:
        with opened_image(source, name, self.max_pixels) as image:
            plan = plan_image(*shown_size(image, self.fixes), self.config)
        return Medium(name, [plan], asdict(plan), functools.partial(self._decoded, source, name))

    def _decoded(self, source: Source, name: str) -> Iterator[Image.Image]:
        with opened_image(source, name, self.max_pixels) as image:
            yield to_rgb(image, self.fixes, name)

    def video(self, source: Source, name: str, fps: float | None) -> Medium:
        reader = open_video(source, name, fps, self.fixes, self.max_pixels)
        plan = plan_video(reader.num_frames, reader.fps, self.config, reader.size)
        return Medium(name, plan.chunk_plans, plan.described(), functools.partial(reader.frames, plan.indices), plan)

    def document(self, source: Source, name: str) -> Medium:
        plans = [plan_image(*size, self.config) for size in page_sizes(source, name, self.max_pages, self.max_pixels)]
        described = {"pages": [asdict(plan) for plan in plans]}
        return Medium(name, plans, described, functools.partial(render_pages, source, name))


def load_media(messages: list[Message], config: MediaConfig | None, max_tokens: int, *, fixes: Collection[str] = (),
               max_pixels: int = DEFAULT_MAX_PIXELS, max_pages: int = DEFAULT_MAX_PAGES) -> Media:
    """Find the media in the messages of all roles, plan them, and decode them if they fit into `max_tokens`.

    `config` may be None only for conversations without media. Raises MediaError, ConfigError.
    """
    check_fixes(fixes)
    parts = [(where, part) for where, part in _content_parts(messages) if part.get("type") in KINDS]
    if not parts:
        return Media(messages)
    if config is None:
        raise MediaError(f"{parts[0][0]}: this model has no media settings and cannot see. Send text only.")
    loader = Loader(config, fixes, max_pixels, max_pages)
    media = {where: loader.medium(part, where) for where, part in parts}
    require_room(list(media.values()), max_tokens, config)
    items = [item for medium in media.values() for item in medium.items]
    return Media(
        messages=_with_pages(messages, media),
        pixel_values=_decode(list(media.values()), config),
        grid_thws=np.array([item.grid_thw for item in items], np.int64),
        tokens_per_medium=[item.num_tokens for item in items],
        video_runs=[chunk_runs(medium.video_plan) for medium in media.values() if medium.video_plan],
        plans=[medium.described for medium in media.values()])


def require_room(media: list[Medium], max_tokens: int, config: MediaConfig) -> None:
    """Refuse what the context cannot hold, with the numbers and what can be done. Raises MediaError."""
    total = sum(medium.num_tokens for medium in media)
    if total <= max_tokens:
        return
    largest = max(media, key=lambda medium: medium.num_tokens)
    if largest.video_plan:
        parts, advice = "chunks", f"lower sample_fps ({config.sample_fps:g}) or cut the video"
    else:
        parts, advice = "pictures", "send fewer or smaller ones"
    raise MediaError(f"the media take {total} tokens, at most {max_tokens} fit. The largest is {largest.name} with "
                     f"{largest.num_tokens} tokens in {len(largest.items)} {parts}: {advice}.")


def chunk_runs(plan: VideoPlan) -> list[Run]:
    """A video's prompt: markers as control runs, timestamps and the word `video` as text."""
    begin, content, pad, end = (Run("s", marker) for marker in (MEDIA_BEGIN, MEDIA_CONTENT, MEDIA_PAD, MEDIA_END))
    return [run for timestamp in plan.timestamps
            for run in (Run("t", timestamp), begin, Run("t", "video"), content, pad, end)]


def video_argument(text: str) -> str | dict[str, Any]:
    """What `--video` takes: a file, or `DIR@FPS` for a folder of frames, as the value of a video part."""
    source, at, rate = text.rpartition("@")
    if at and re.fullmatch(r"\d+(\.\d+)?", rate) and not Path(text).exists():
        return {"url": source, "fps": float(rate)}
    return text


def _content_parts(messages: list[Message]) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, message in enumerate(messages):
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list) else []):
            if isinstance(part, dict):
                yield f"messages[{i}].content[{j}]", part


def _value_and_fps(part: dict[str, Any], where: str) -> tuple[Any, float | None]:
    """A part's value is the source itself or a mapping `{"url": source}`; a video's may hold `fps` too."""
    value = part.get(part["type"])
    if not isinstance(value, dict):
        return value, None
    if "url" not in value:
        raise MediaError(f'{where}.{part["type"]}: has no "url". Expected a path, a data: URL or {{"url": ...}}.')
    return value["url"], value.get("fps")


def _with_pages(messages: list[Message], media: dict[str, Medium]) -> list[Message]:
    """The messages with each document replaced by its pages: a text part `Page 1:` and an image part, and so on."""
    result = []
    for i, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            pairs = [(part, media.get(f"messages[{i}].content[{j}]")) for j, part in enumerate(content)]
            content = [new for part, medium in pairs for new in _page_parts(part, medium)]
        result.append(message if content is message.get("content") else message | {"content": content})
    return result


def _page_parts(part: Any, medium: Medium | None) -> Iterable[Any]:
    if medium is None or KINDS[part["type"]] != "pdf":
        return [part]
    texts = [{"type": "text", "text": f"Page {number}:\n"} for number in range(1, len(medium.items) + 1)]
    images = [{"type": "image", "image": f"{medium.name}#page={number}"} for number in range(1, len(medium.items) + 1)]
    return [new for pair in zip(texts, images, strict=True) for new in pair]


def _decode(media: list[Medium], config: MediaConfig) -> np.ndarray:
    num_patches = sum(item.num_patches for medium in media for item in medium.items)
    pixel_values = np.empty((num_patches, 3, config.patch_size, config.patch_size), np.float32)
    start = 0
    for medium in media:
        with contextlib.closing(medium.pictures()) as pictures:
            for item in medium.items:
                rows = pixel_values[start:start + item.num_patches]
                write_patches(islice(pictures, item.grid_thw[0]), item, config, rows)
                start += item.num_patches
    return pixel_values
