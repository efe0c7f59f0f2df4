"""Turn images, videos and PDF documents into the arrays that the model takes, or plan their size without any file."""

import argparse
import json
import math
import os
import re
from dataclasses import asdict
from pathlib import Path

from reference.command import OneLineParser, read_json, run, write_whole
from reference.errors import UsageError

PUBLISHED_CONTEXT = 262_144
MAX_FRAMES = 2**53  # a double counts no further
EXAMPLES = """
Prints a JSON list with the plan of each medium, in the order given: sizes, patch grid and tokens; for a video its
chunks, timestamps and prompt; for a document its pages. A folder of frames is a video too: --video DIR@FPS.

examples:
  python -m tools.preprocess --image photo.jpg --video clip.gif --out media.safetensors
  python -m tools.preprocess --plan-video 300@29.97 --frame-size 1280x720
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="python -m tools.preprocess", description=__doc__, epilog=EXAMPLES,
                                     allow_abbrev=False,  # AddMedium reads the option's whole name
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in ("image", "video", "pdf"):
        parser.add_argument(f"--{kind}", action=AddMedium, dest="media", default=[], metavar="FILE",
                            help=f"preprocess this {kind}; repeatable, the order given holds across the three options")
    parser.add_argument("--out", type=Path, metavar="OUT.safetensors",
                        help="write pixel_values float32 [patches, 3, 14, 14] and grid_thws int64 [media, 3] here")
    parser.add_argument("--plan", type=parse_size, metavar="WIDTHxHEIGHT",
                        help="print the plan of an image of this size; no file is read")
    parser.add_argument("--plan-video", type=parse_video, metavar="FRAMES@FPS",
                        help="print the plan of a video of this length; no file is read")
    parser.add_argument("--frame-size", type=parse_size, metavar="WIDTHxHEIGHT",
                        help="with --plan-video: plan sizes and tokens too")
    parser.add_argument("--config", type=Path, metavar="FILE",
                        help="JSON media_proc_cfg, alone or inside preprocessor_config.json; missing keys as published")
    parser.add_argument("--fix", action="append", default=[], metavar="NAME",
                        help="depart from the published decoding; repeatable: alpha (composite on white, not dropped), "
                             "sixteen_bit (scale 16-bit gray, not clipped), exif (turn the picture as its EXIF says)")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="refuse larger pictures (default 178956970)")
    parser.add_argument("--max-tokens", type=int, default=PUBLISHED_CONTEXT, metavar="N",
                        help="refuse media that take more tokens than this (default %(default)s)")
    return parser.parse_args(argv)


class AddMedium(argparse.Action):
    """Collect --image, --video and --pdf in one list, so that their order on the command line is kept."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.media = [*namespace.media, (option_string.lstrip("-"), values)]


def parse_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT"""
    if not (match := re.fullmatch(r"(\d{1,9})x(\d{1,9})", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, two numbers of pixels such as 1280x720")
    return int(match[1]), int(match[2])


def parse_video(text: str) -> tuple[int, float]:
    """FRAMES@FPS"""
    frames, _, rate = text.partition("@")
    try:
        parsed = int(frames), float(rate)
    except ValueError:
        parsed = 0, math.nan
    if not 1 <= parsed[0] < MAX_FRAMES or not 0 < parsed[1] < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not FRAMES@FPS, two numbers above 0 such as 300@29.97")
    return parsed


def check_arguments(args: argparse.Namespace) -> None:
    """Exactly one job, with what it needs. Raises UsageError."""
    jobs = [name for name in ("media", "plan", "plan_video") if getattr(args, name)]
    if len(jobs) != 1:
        raise UsageError("expected one job: media (--image, --video, --pdf), --plan or --plan-video. See --help.")
    if (jobs == ["media"]) != (args.out is not None):
        raise UsageError("--out goes with --image, --video and --pdf, and they need it: name a file to write.")
    if args.out and any(os.path.realpath(args.out) == os.path.realpath(file) for _, file in args.media):
        raise UsageError(f"--out {args.out} is one of the media and would be overwritten. Name another file.")
    if args.frame_size and not args.plan_video:
        raise UsageError("--frame-size goes with --plan-video FRAMES@FPS.")


def read_config(path: Path | None):
    from reference.image import MediaConfig

    content = {} if path is None else read_json(path, "the media settings")
    if isinstance(content, dict) and "media_proc_cfg" in content:
        content = content["media_proc_cfg"]
    return MediaConfig.from_dict(content)


def preprocess(args: argparse.Namespace) -> list[dict]:
    """Write the arrays; returns the plans."""
    from safetensors.numpy import save_file

    from reference.image import DEFAULT_MAX_PIXELS
    from reference.media import load_media, video_argument

    parts = [{"type": kind, kind: video_argument(value) if kind == "video" else value} for kind, value in args.media]
    max_pixels = DEFAULT_MAX_PIXELS if args.max_pixels is None else args.max_pixels
    with write_whole(args.out) as temporary:
        media = load_media([{"role": "user", "content": parts}], read_config(args.config), args.max_tokens,
                           fixes=args.fix, max_pixels=max_pixels)
        save_file({"pixel_values": media.pixel_values, "grid_thws": media.grid_thws}, temporary)
    return media.plans


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    check_arguments(args)
    if args.media:
        result = preprocess(args)
    elif args.plan:
        from reference.image import plan_image

        result = asdict(plan_image(*args.plan, read_config(args.config)))
    else:
        from reference.video import plan_video

        result = plan_video(*args.plan_video, read_config(args.config), args.frame_size).described()
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
