"""The command line of tools.preprocess: plans, arrays, order, exit codes, and no half-written file."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from parity_tests.test_media import RED_CORNER, pdf, png
from parity_tests.test_video import animation, frame_folder, video_file
from reference.command import run
from reference.image import FIXES, MediaConfig, image_patches
from tools import preprocess

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A current directory with one medium of each kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(png("red"))
    (tmp_path / "clip.gif").write_bytes(animation("GIF"))
    (tmp_path / "clip.mp4").write_bytes(video_file())
    (tmp_path / "text.pdf").write_bytes(pdf(RED_CORNER, RED_CORNER))
    frame_folder(tmp_path / "frames")
    return tmp_path


def called(capsys, arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    try:
        code = run(lambda: preprocess.main(shlex.split(arguments)))
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def printed(capsys, arguments: str):
    code, out, err = called(capsys, arguments)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_plan_prints_one_object(capsys):
    assert printed(capsys, "--plan 1000x700") == {
        "new_width": 1000, "new_height": 700, "pad_width": 8, "pad_height": 0,
        "grid_thw": [1, 50, 72], "num_tokens": 900}


def test_plan_video_prints_sizes_only_with_a_frame_size(capsys):
    plan = printed(capsys, "--plan-video 90@30")
    assert list(plan) == ["chunks", "timestamps", "prompt"]
    assert plan["chunks"] == [[0, 18, 36, 53], [71, 89]] and plan["timestamps"] == ["00:00:00.000", "00:00:02.366"]
    sized = printed(capsys, "--plan-video 90@30 --frame-size 56x28")
    assert plan.items() <= sized.items()
    assert sized["grid_thws"] == [[4, 2, 4], [2, 2, 4]] and sized["tokens_per_chunk"] == [2, 2]
    assert sized["prompt_expanded"] == plan["prompt"].replace("<|media_pad|>", "<|media_pad|>" * 2)


def test_arrays_and_plans_keep_the_order_of_the_command_line(folder, capsys):
    plans = printed(
        capsys, "--pdf text.pdf --image photo.jpg --video clip.gif --image photo.jpg --video frames@4 --out o")
    assert [sorted(plan)[0] for plan in plans] == ["pages", "grid_thw", "chunks", "grid_thw", "chunks"]
    assert plans[1] == printed(capsys, "--plan 30x20")
    assert plans[2] == printed(capsys, "--plan-video 5@4 --frame-size 40x24") == plans[4]
    arrays = load_file("o")
    assert arrays.keys() == {"pixel_values", "grid_thws"}
    assert arrays["grid_thws"].dtype == np.int64 and arrays["pixel_values"].dtype == np.float32
    assert arrays["grid_thws"].tolist() == [[1, 8, 16], [1, 8, 16], [1, 2, 4], [2, 2, 4], [1, 2, 4], [2, 2, 4]]
    assert arrays["pixel_values"].shape == (arrays["grid_thws"].prod(1).sum(), 3, 14, 14)
    photo = image_patches(Image.new("RGB", (30, 20), "red"), MediaConfig())[0]
    assert np.array_equal(arrays["pixel_values"][256:264], photo)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [], "no temporary file is left"


def test_settings_may_come_alone_or_as_published(folder, capsys):
    settings = {"sample_fps": 4.0, "patch_limit_on_one_side": 8}
    for content in (settings, {"media_proc_cfg": settings, "processor_class": "X"}):
        (folder / "settings.json").write_text(json.dumps(content))
        assert printed(capsys, "--plan 224x28 --config settings.json")["new_width"] == 112
        assert len(printed(capsys, "--video clip.gif --out o --config settings.json")[0]["chunks"]) == 2


def test_fixes_are_opt_in(folder, capsys):
    Image.new("RGBA", (28, 28), (255, 0, 0, 0)).save("clear.png")
    printed(capsys, "--image clear.png --out o")
    assert load_file("o")["pixel_values"][0, :, 0, 0].tolist() == [1, -1, -1]
    printed(capsys, "--image clear.png --out o --fix alpha --fix exif")
    assert load_file("o")["pixel_values"][0, :, 0, 0].tolist() == [1, 1, 1]


def test_help_names_every_fix(capsys):
    code, out, _ = called(capsys, "--help")
    assert code == 0 and all(f"{fix} (" in " ".join(out.split()) for fix in FIXES)


def test_the_examples_of_the_help_work(folder, capsys):
    examples = [line.split("preprocess ", 1)[1] for line in preprocess.EXAMPLES.splitlines() if "python -m" in line]
    assert len(examples) == 2
    for example in examples:
        assert printed(capsys, example)


@pytest.mark.parametrize("arguments, message", [
    ("", "expected one job"),
    ("--plan 10x10 --plan-video 5@5", "expected one job"),
    ("--image photo.jpg", "--out goes with"),
    ("--plan 10x10 --out o", "--out goes with"),
    ("--plan 10x10 --frame-size 5x5", "--frame-size goes with"),
    ("--plan 10", "'10' is not WIDTHxHEIGHT"),
    ("--plan 0x10", "0x10 pixels is empty"),
    ("--plan-video 10", "'10' is not FRAMES@FPS"),
    ("--plan-video 0@10", "is not FRAMES@FPS"),
    ("--plan-video 10@nan", "is not FRAMES@FPS"),
    (f"--plan-video 1{'0' * 400}@1", "is not FRAMES@FPS"),
    ("--plan-video 5@1e-308", "last for ever"),
    ("--plan-video 99999999999@30", "Lower sample_fps"),
    ("--plan-video 5@5 --frame-size 0x5", "0x5 pixels is empty"),
    ("--image nothing.png --out o", "nothing.png: cannot be opened"),
    ("--image text.pdf --out o", "text.pdf: not an image Pillow can read (first bytes: 25 50 44 46"),
    ("--image http://localhost/a.png --out o", "not fetched"),
    ("--video photo.jpg --out o", "photo.jpg: a still picture"),
    ("--video frames --out o", "frames@4 on the command line"),
    ("--video broken.mp4 --out o", "broken.mp4: not a video"),
    ("--pdf photo.jpg --out o", "photo.jpg: not a PDF"),
    ("--image photo.jpg --image broken.mp4 --out o", "broken.mp4: not an image"),
    ("--image photo.jpg --out no/such/o", "cannot write there"),
    ("--image photo.jpg --out frames", "frames: is no file that can be replaced"),
    ("--image photo.jpg --out ./photo.jpg", "would be overwritten"),
    ("--image photo.jpg --out o --fix blur", "unknown fix blur"),
    ("--image photo.jpg --out o --max-tokens 1", "take 2 tokens, at most 1 fit"),
    ("--image photo.jpg --out o --max-pixels 100", "limit of 100"),
    ("--image photo.jpg --out o --config nothing.json", "nothing.json: cannot read"),
    ("--plan 5x5 --config bad.json", "unknown setting patch_sise"),
    ("--plan 5x5 --config list.json", "expected a mapping, found list"),
    ("--image photo.jpg --out o --config fixed.json", "fixed_output_tokens is 7"),
    ("--plan 70x28 --config odd.json", "patch_limit_on_one_side is 5, but an image of 70x28"),
])
def test_bad_input_exits_2_with_one_line_and_writes_nothing(folder, capfd, arguments, message):
    (folder / "broken.mp4").write_bytes(video_file()[:700])
    (folder / "bad.json").write_text('{"patch_sise": 14}')
    (folder / "list.json").write_text("[]")
    (folder / "fixed.json").write_text('{"fixed_output_tokens": 7}')
    (folder / "odd.json").write_text('{"patch_limit_on_one_side": 5}')
    before = sorted(path.name for path in folder.iterdir())
    code, out, err = called(capfd, arguments)
    assert code == 2 and out == "" and message in err
    last_line = err.splitlines()[-1]
    assert message in last_line and (len(err.splitlines()) == 1 or err.startswith("usage:"))
    assert sorted(path.name for path in folder.iterdir()) == before


def test_an_existing_file_survives_a_failure(folder, capsys):
    (folder / "o").write_bytes(b"precious")
    assert called(capsys, "--image clip.mp4 --out o")[0] == 2
    assert (folder / "o").read_bytes() == b"precious"


def test_it_starts_as_a_module_without_torch(folder):
    program = ("import runpy, sys\n"
               "sys.argv = ['preprocess', '--video', 'clip.mp4', '--pdf', 'text.pdf', '--out', 'o']\n"
               "try: runpy.run_module('tools.preprocess', run_name='__main__')\n"
               "except SystemExit as exit: assert exit.code == 0 and 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(ROOT)})
    assert load_file("o")["grid_thws"].tolist() == [[2, 4, 4], [1, 8, 16], [1, 8, 16]]
