"""What every command line shares: exit codes, one-line errors, and files that appear whole or not at all."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from .errors import KimiError, UsageError

DONE, CHECK_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class OneLineParser(argparse.ArgumentParser):
    """Complains in one line, as every other bad input does."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See {self.prog} --help.")


def run(main: Callable[[], int | None]) -> int:
    """Call `main` and turn what it raises into an exit code: 2 with one line for bad input, 130 for Ctrl-C."""
    open_standard_streams()
    try:
        code = main()
        sys.stdout.flush()
        return code or DONE
    except KimiError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        discard_output()  # the reader (`head`, a closed pager) went away
        return DONE
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            return DONE  # rich saw it first; its exit code 1 would read as a failed check
        raise
    except OSError as error:
        discard_output()
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}. Is the disk full, or a file not accessible?", file=sys.stderr)
        return BAD_INPUT


def open_standard_streams() -> None:
    """Make stdout UTF-8 with plain line ends whatever the locale, and open the streams that the caller had closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, open until the program ends
    if hasattr(sys.stdout, "reconfigure"):  # not where a test or a notebook put something else in its place
        # A file name may hold bytes that are no UTF-8: they go out as they came in.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")


def discard_output() -> None:
    """What is still buffered can go nowhere: Python would complain once more when it flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())


@contextlib.contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it onto `path` when the block ends well, delete it otherwise.

    Raises UsageError if the folder does not exist or cannot be written to, or if `path` is something else than a file:
    a rename would fail at the very end, or put a file in the place of /dev/null.
    """
    temporary, target = _beside(path)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raise what `write_whole` would, before the work whose result is to be written there."""
    _beside(path)[0].unlink()


def _beside(path: str | Path) -> tuple[Path, Path]:
    """A temporary file in the folder of `path`, and what `path` points to."""
    target = Path(path).resolve()  # a link stays a link
    if target.exists() and not target.is_file():
        raise UsageError(f"{path}: is no file that can be replaced. Name a file to write.")
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot write there ({error.strerror}). Name a folder that exists and is writable."
        ) from None
    return Path(name), target


def read_json(path: str | Path, what: str) -> Any:
    """Read a UTF-8 JSON file. `what` names its purpose in the error. Raises UsageError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot read {what} ({error.strerror}). Check the path.") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, or brackets without end
        raise UsageError(f"{path}: {what} is not valid JSON ({error}). Expected UTF-8 JSON text.") from None
