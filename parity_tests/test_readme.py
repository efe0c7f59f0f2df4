"""What the documents and the `--help` texts tell people to type works, and every link leads somewhere."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")), ROOT / "optimized/README.md",
             ROOT / "reference/nano/README.md"]
# Examples that are read, not run: these programs take long or need a GPU; the folder is one that readers download.
NOT_RUN = ("tools.train", "tools.average_weights", "tools.evaluate", "tools.evaluate_all", "tools.vocabulary",
           "tools.gpu_check", "tools.bench_forms")  # fmt: skip
DOWNLOADED = "checkpoints/"


def programs() -> list[str]:
    files = [path for package in ("reference", "optimized", "tools") for path in sorted((ROOT / package).glob("*.py"))]
    return [f"{path.parent.name}.{path.stem}" for path in files if "__main__" in path.read_text(encoding="utf-8")]


@functools.cache
def help_text(program: str) -> str:
    outcome = subprocess.run([sys.executable, "-m", program, "--help"], cwd=ROOT, capture_output=True, timeout=60)
    return outcome.stdout.decode()


def help_examples() -> list[str]:
    """The commands at the end of every `--help`."""
    return [line.strip() for program in programs()
            for line in help_text(program).partition("xamples:\n")[2].splitlines() if line.startswith("  ")]


def document_commands() -> list[str]:
    """Lines of code blocks, fenced or indented, that start one of our programs."""
    lines = [line.strip() for path in DOCUMENTS for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line.startswith("python -m ")]


def program_of(command: str) -> str:
    return re.search(r"python -m ([\w.]+)", command)[1]


def runnable(commands: list[str]) -> list[str]:
    """Each command once, without those that are only read."""
    return [command for command in dict.fromkeys(commands)
            if program_of(command) not in NOT_RUN and DOWNLOADED not in command]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the files that examples name, and copies of the shipped model, pictures and reports to work on."""
    picture = Image.new("RGB", (84, 56), "white")
    ImageDraw.Draw(picture).ellipse((10, 10, 40, 40), fill="red")
    for name in ("photo.png", "photo.jpg"):
        picture.save(tmp_path / name)
    picture.save(tmp_path / "clip.gif", save_all=True, append_images=[picture.rotate(90)] * 3, duration=500)
    for name in ("float32", "mine", "bfloat16", "ours", "yours"):
        save_file({"logits": np.ones((1, 3, 5), np.float32)}, tmp_path / f"{name}.safetensors")
    save_file({"input_ids": np.arange(7)[None]}, tmp_path / "in.safetensors")
    tool = {"type": "function", "function": {"name": "step", "parameters": {"type": "object", "properties": {}}}}
    (tmp_path / "tools.json").write_text(json.dumps([tool]), encoding="utf-8")
    for folder in ("reference/nano", "docs/examples", "docs/benchmarks"):
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def run_command(command: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a command line in a shell whose `python` is the one that runs the tests."""
    script = 'set -o pipefail; python() { "$TEST_PYTHON" "$@"; }\n' + command
    environment = os.environ | {"TEST_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, encoding="utf-8",
                          timeout=300)


def run_make(*arguments: str) -> subprocess.CompletedProcess:
    """Run make with the Python of the tests, and without what a make around the tests was told."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "ARGS")}
    return subprocess.run(["make", *arguments, f"PYTHON={sys.executable}"], cwd=ROOT, env=environment,
                          capture_output=True, encoding="utf-8", timeout=300)


@pytest.mark.parametrize("command", runnable(help_examples() + document_commands()))
def test_command_runs(command, workplace):
    outcome = run_command(command, workplace)
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize("command", dict.fromkeys(help_examples() + document_commands()))
def test_command_uses_options_that_exist(command):
    options = set(re.findall(r"(?<=\s)--[a-z][\w-]*", command.rpartition("python -m")[2]))
    assert options <= set(re.findall(r"--[a-z][\w-]*", help_text(program_of(command))))


@pytest.mark.parametrize("program", programs())
def test_help_opens_with_a_sentence_and_ends_with_two_examples(program):
    text = help_text(program)
    assert re.search(r"\n\n[A-Z][^\n]*", text)
    assert len([line for line in text.partition("xamples:\n")[2].splitlines() if line.startswith("  ")]) == 2


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"(?:^|`|whl/cpu )make ([a-z-]+)", README, re.MULTILINE))))
def test_make_verb_exists(verb):
    outcome = run_make("--dry-run", verb)
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document):
    targets = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith("http")]
    assert [target for target in local if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("package", ["reference", "optimized", "tools"])
def test_readme_maps_every_file(package):
    """One line per file, none for a file that is gone."""
    tables = README.partition("## Where things are")[2].partition("\n## ")[0]
    parts = re.split(r"^`(reference|optimized|tools)/`, ", tables, flags=re.MULTILINE)
    here = "".join(text for name, text in zip(parts[1::2], parts[2::2], strict=True) if name == package)
    mapped = re.findall(r"^\| `(\w+\.py)` \|", here, flags=re.MULTILINE)
    present = [path.name for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"]
    assert sorted(mapped) == sorted(present)


def test_readme_shows_what_make_run_prints():
    """The answer, which is greedy. The speed figures around it belong to the machine of the transcript."""
    transcript = README.partition("<!-- transcript: begin -->")[2].partition("<!-- transcript: end -->")[0].strip()
    outcome = run_make("--silent", "run")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.strip() in transcript
