"""What every command line shares: exit codes, one line for bad input, streams, and files that appear whole or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reference.command import (
    BAD_INPUT,
    CHECK_FAILED,
    DONE,
    INTERRUPTED,
    OneLineParser,
    check_writable,
    run,
    write_whole,
)
from reference.errors import UsageError

ROOT = Path(__file__).parents[1]


def raising(error: BaseException):
    def main() -> int:
        raise error

    return main


def in_a_shell(command: str, program: str) -> tuple[int, str]:
    """Run `program`, a main() that `run` calls, as PYTHON in a shell command; its exit code and stderr."""
    script = f"from reference.command import *\ndef main():\n    {program}\nraise SystemExit(run(main))"
    environment = os.environ | {"PYTHON": sys.executable, "SCRIPT": script}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize(("main", "code"), [
    (lambda: None, DONE), (lambda: 0, DONE), (lambda: 1, CHECK_FAILED), (raising(KeyboardInterrupt()), INTERRUPTED),
    (raising(UsageError("a\nb")), BAD_INPUT), (raising(OSError(28, "No space left on device", "x")), BAD_INPUT)])
def test_exit_codes_and_at_most_one_line(main, code, capsys):
    assert run(main) == code
    assert capsys.readouterr().err.count("\n") == (code > CHECK_FAILED)


def test_wrong_options_are_one_line(capsys):
    parser = OneLineParser(prog="python -m tools.x")
    parser.add_argument("--n", type=int)
    assert run(lambda: parser.parse_args(["--n", "many"])) == BAD_INPUT
    expected = "error: argument --n: invalid int value: 'many'. See python -m tools.x --help.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(("command", "code"), [
    ('"$PYTHON" -c "$SCRIPT" | true; exit ${PIPESTATUS[0]}', DONE),
    ('"$PYTHON" -c "$SCRIPT" >&-', DONE),
    ('"$PYTHON" -c "$SCRIPT" > /dev/full', BAD_INPUT)])
def test_output_that_nobody_can_take(command, code):
    if "/dev/full" in command and not Path("/dev/full").exists():
        command, code = command.replace("/dev/full", "/dev/null"), DONE  # macOS has no such device
    found, err = in_a_shell(command, "import time; time.sleep(0.2); print('x' * 100000)")
    assert (found, "Traceback" in err, err.count("\n")) == (code, False, code == BAD_INPUT)


def test_a_table_that_nobody_reads_on_is_no_failed_check():
    program = "import time, rich.console; time.sleep(0.2); rich.console.Console().print('x\\n' * 50000)"
    assert in_a_shell('"$PYTHON" -c "$SCRIPT" | true; exit ${PIPESTATUS[0]}', program) == (DONE, "")


def test_closed_stdin_is_empty():
    assert in_a_shell('"$PYTHON" -c "$SCRIPT" <&-', "return int(sys.stdin.buffer.read() != b'')") == (DONE, "")


def test_stdout_is_utf8_whatever_the_locale():
    command = '[ "$(PYTHONIOENCODING=latin-1 LC_ALL=C "$PYTHON" -c "$SCRIPT")" = $\'\\xc3\\xa4\\xe2\\x82\\xac\\xff\' ]'
    assert in_a_shell(command, "print('\\xe4\\u20ac\\udcff')") == (0, "")


def test_file_appears_whole_or_not_at_all(tmp_path):
    with write_whole(tmp_path / "out") as path:
        path.write_text("whole")
    with pytest.raises(ValueError, match="stop"), write_whole(tmp_path / "out") as path:
        path.write_text("half")
        raise ValueError("stop")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("out", "whole")]


def test_only_a_file_is_replaced(tmp_path):
    for path in (tmp_path, Path("."), Path("/dev/null"), tmp_path / "missing" / "out"):
        with pytest.raises(UsageError, match="Name a"):
            check_writable(path)
        with pytest.raises(UsageError, match="Name a"), write_whole(path):
            pytest.fail("it got as far as the work")
    assert Path("/dev/null").is_char_device() and not list(tmp_path.iterdir())


def test_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with write_whole(tmp_path / "link") as path:
        path.write_text("x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "x"
