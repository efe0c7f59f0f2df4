"""What every command line shares: exit codes, one-line errors, and files that appear whole or not at all."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import KimiError, UsageError

DONE, CHECK_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def run(main: Callable[[], int | None]) -> int:
    """Call `main` and turn what it raises into an exit code: 2 with one line for bad input, 130 for Ctrl-C."""
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
        # The reader (`head`, a closed pager) went away. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


@contextlib.contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it onto `path` when the block ends well, delete it otherwise.

    Raises UsageError if the folder does not exist or cannot be written to.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot write there ({error.strerror}). Name a folder that exists and is writable."
        ) from None
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: str | Path, what: str) -> Any:
    """Read a UTF-8 JSON file. `what` names its purpose in the error. Raises UsageError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot read {what} ({error.strerror}). Check the path.") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, or brackets without end
        raise UsageError(f"{path}: {what} is not valid JSON ({error}). Expected UTF-8 JSON text.") from None
