"""Say whether this Python has what a make verb needs: `check_packages.py [EXTRA or PACKAGE]...`.

Used when a Python is handed to make (`make run PYTHON=...`) instead of the environment that make builds itself.
Exit 2 with one line if something is missing.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LEAVE_OUT = "or leave PYTHON out: then make builds .venv by itself."


def version_pair(text: str) -> tuple[int, int]:
    major, minor = re.match(r"(\d+)\.(\d+)", text).groups()
    return int(major), int(minor)


def is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def complaint(wanted: list[str]) -> str | None:
    """What keeps this Python from running the project, with the way out, or None."""
    if sys.version_info < (3, 11):  # noqa: UP036  (any Python may be handed in)
        return f"{sys.executable} is Python {sys.version.split()[0]}, needed is 3.11 or newer. Name another {LEAVE_OUT}"
    import tomllib  # Python 3.11 brings it

    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    for name in wanted:
        requirements += project["optional-dependencies"].get(name, [name])
    packages = [re.match(r"[\w.-]+", requirement)[0] for requirement in requirements]
    if missing := [package for package in packages if not is_installed(package)]:
        return (f"{sys.executable} lacks {', '.join(missing)}. Install with "
                f"'{sys.executable} -m pip install -c constraints.txt {' '.join(missing)}', {LEAVE_OUT}")
    oldest, too_new = re.search(r"torch>=([\d.]+),<([\d.]+)", requirements[0]).groups()
    if not version_pair(oldest) <= version_pair(version("torch")) < version_pair(too_new):
        return (f"{sys.executable} has torch {version('torch')}, needed is {oldest} or newer, below {too_new}. "
                f"Name another Python, {LEAVE_OUT}")
    return None


if __name__ == "__main__":
    if problem := complaint(sys.argv[1:]):
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2)
