"""Imports point one way, tools -> optimized -> reference, without cycles, and programs load only what they need."""

import ast
import graphlib
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("reference", "optimized", "tools")  # each may import itself and what stands before it
ORACLES = {"transformers", "compressed_tensors", "jinja2"}  # other implementations: the tests compare with them
MEASURED_PEER = ("tools.bench_engines", "transformers")  # `--peer transformers` is what it says
CORE = {"torch", "safetensors", "sentencepiece", "tiktoken", "regex", "PIL", "numpy", "rich"}
MAY_LOAD = CORE | {"reference"} | sys.stdlib_module_names  # what `reference` may import at the top of a file
TORCH_FREE = ("render_chat", "encode_text", "parse_reply", "declare_tools", "preprocess")


class Import(NamedTuple):
    """One import statement: the dotted name, where it stands, and whether loading the module executes it."""

    name: str
    line: int
    at_load: bool


def read_modules(root: Path) -> dict[str, list[Import]]:
    """Every module of our packages under `root`, by dotted name, with what it imports."""
    files = {dotted_name(path.relative_to(root)): path for layer in LAYERS for path in (root / layer).rglob("*.py")}
    return {name: list(find_imports(path, name, files)) for name, path in files.items()}


def dotted_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def find_imports(path: Path, module: str, known: dict[str, Path]):
    """Yield what the file imports; imports under `if TYPE_CHECKING` never run and do not count."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    pending = deque((node, True) for node in ast.parse(path.read_text(encoding="utf-8")).body)
    while pending:
        node, at_load = pending.popleft()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending.extend((child, at_load) for child in node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(node, package)
            for alias in node.names:  # `from reference import config` names a module, `from .config import X` does not
                name = f"{base}.{alias.name}"
                yield Import(name if name in known else base, node.lineno, at_load)
        at_load = at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        pending.extend((child, at_load) for child in ast.iter_child_nodes(node))


def absolute_base(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module
    base = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join(base + ([node.module] if node.module else []))


def top(name: str) -> str:
    return name.partition(".")[0]


def layering_faults(modules: dict[str, list[Import]]) -> list[str]:
    """Imports that point upward, at an oracle or at the tests, or that `reference` may not have."""
    faults = []
    for module, imports in sorted(modules.items()):
        allowed = LAYERS[: LAYERS.index(top(module)) + 1]
        for name, line, at_load in imports:
            where = f"{module}:{line} imports {name}"
            if top(name) in LAYERS and top(name) not in allowed:
                faults.append(f"{where}: upward; allowed are {', '.join(allowed)}")
            elif (module, top(name)) == MEASURED_PEER:
                continue
            elif top(name) in ORACLES | {"parity_tests"}:
                faults.append(f"{where}: only parity_tests may")
            elif top(module) == "reference" and at_load and top(name) not in MAY_LOAD:
                faults.append(f"{where} when it loads: not a core package; import it inside the function that needs it")
    return faults


def find_cycle(modules: dict[str, list[Import]]) -> list[str] | None:
    """Modules that import each other in a circle, also through imports inside functions, or None."""
    graph = {module: {name for name, _, _ in imports if name in modules} for module, imports in modules.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def path_to(package: str, start: str, modules: dict[str, list[Import]]) -> list[str] | None:
    """The shortest chain of imports, at any level, by which `start` reaches `package`, or None."""
    seen, pending = {start}, deque([[start]])
    while pending:
        chain = pending.popleft()
        for name, _, _ in modules.get(chain[-1], []):
            if top(name) == package:
                return [*chain, name]
            if name in modules and name not in seen:
                seen.add(name)
                pending.append([*chain, name])
    return None


def torch_free_programs() -> list[str]:
    return [f"tools.{name}" for name in TORCH_FREE if (ROOT / "tools" / f"{name}.py").exists()]


def programs() -> list[str]:
    """Every module that can be started with `python -m`."""
    files = [path for layer in LAYERS for path in sorted((ROOT / layer).glob("*.py"))]
    started = [path for path in files if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    return [dotted_name(path.relative_to(ROOT)) for path in started]


def test_imports_point_down_and_stay_inside_the_core_packages():
    assert layering_faults(read_modules(ROOT)) == []


def test_imports_have_no_cycle():
    assert find_cycle(read_modules(ROOT)) is None


@pytest.mark.parametrize("program", torch_free_programs())
def test_program_that_needs_no_torch_reaches_none(program):
    assert path_to("torch", program, read_modules(ROOT)) is None


@pytest.mark.parametrize("program", programs())
def test_help_is_printed_before_torch_is_imported(program):
    code = ("import runpy, sys\nsys.argv = ['program', '--help']\n"
            f"try: runpy.run_module({program!r}, run_name='__main__')\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            "assert 'torch' not in sys.modules, 'torch was imported'")
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith("usage:")


def write_package(root: Path, files: dict[str, str]) -> dict[str, list[Import]]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return read_modules(root)


@pytest.mark.parametrize(("file", "text", "complaint"), [
    ("reference/model.py", "def f():\n    from tools import bench\n", "upward"),
    ("reference/model.py", "import optimized.ops\n", "upward"),
    ("optimized/ops.py", "from tools.bench import measure\n", "upward"),
    ("reference/model.py", "def f():\n    import transformers\n", "only parity_tests may"),
    ("tools/bench.py", "from jinja2.sandbox import X\n", "only parity_tests may"),
    ("tools/bench.py", "from parity_tests import agreement\n", "only parity_tests may"),
    ("reference/video.py", "import av\n", "inside the function"),
])
def test_a_forbidden_import_is_found(tmp_path, file, text, complaint):
    modules = write_package(tmp_path, {"tools/bench.py": "", "optimized/ops.py": "", file: text})
    assert [complaint in fault for fault in layering_faults(modules)] == [True]


def test_allowed_imports_are_not_complained_about(tmp_path):
    modules = write_package(tmp_path, {
        "reference/errors.py": "import json\n",
        "reference/video.py": "from .errors import X\ndef f():\n    import av\n",
        "optimized/ops.py": "from reference import video\n",
        "tools/bench.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import transformers\n",
    })
    assert layering_faults(modules) == []
    assert find_cycle(modules) is None


def test_a_cycle_is_found_through_relative_and_late_imports(tmp_path):
    modules = write_package(tmp_path, {
        "reference/cache.py": "from . import rope\n",
        "reference/rope.py": "def f():\n    from .cache import X\n",
    })
    assert set(find_cycle(modules)) == {"reference.cache", "reference.rope"}


def test_the_way_to_torch_is_found(tmp_path):
    modules = write_package(tmp_path, {
        "tools/render_chat.py": "def main():\n    from reference.prompt import X\n",
        "reference/prompt.py": "from .image import Y\n",
        "reference/image.py": "from torch import Tensor\n",
    })
    assert path_to("torch", "tools.render_chat", modules) == [
        "tools.render_chat", "reference.prompt", "reference.image", "torch"]
