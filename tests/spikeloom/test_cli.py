"""The command line: help, exit codes, messages."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from spikeloom import __version__, cli


@pytest.fixture
def fake_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], int]], None]:
    """Give the command line a command `fake` that calls a function."""

    def install(function: Callable[[list[str]], int]) -> None:
        module = ModuleType("fake_module")
        module.function = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_module", module)
        monkeypatch.setitem(cli.COMMANDS, "fake", cli.Command("fake_module", "function", "A command of the tests."))

    return install


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def function(argv: list[str]) -> int:
        raise error

    return function


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    text = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert name in text
        assert command.help in text


def test_help_does_not_load_torch() -> None:
    code = "import sys; from spikeloom.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"spikeloom {__version__}\n"


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage" in captured.err


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian", "--epochs", "3"]) == 2
    assert "there is no command 'trian'. Did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_exists_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.COMMANDS[name]
    assert callable(getattr(importlib.import_module(command.module), command.function))
    try:
        code = cli.main([name, "--help"])
    except SystemExit as stop:  # the way of argument parsers
        code = stop.code
    assert code == 0
    assert f"spikeloom {name}" in capsys.readouterr().out


def test_the_rest_of_the_line_reaches_the_command(fake_command: Callable[..., None]) -> None:
    seen: list[str] = []

    def function(argv: list[str]) -> int:
        seen.extend(argv)
        return 7

    fake_command(function)
    assert cli.main(["--debug", "fake", "recipe", "--lr", "0.1"]) == 7
    assert seen == ["recipe", "--lr", "0.1"]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("tau must be [1, inf), got 0.5"),  # the brackets must survive rich's markup
        FileNotFoundError("no such run"),
        ImportError("tonic is not installed"),
    ],
)
def test_a_clear_error_prints_no_traceback(
    error: Exception, fake_command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_command(raising(error))
    assert cli.main(["fake"]) == 1
    captured = capsys.readouterr()
    assert f"error: {error}" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_debug_shows_the_traceback(fake_command: Callable[..., None]) -> None:
    fake_command(raising(ValueError("wrong")))
    with pytest.raises(ValueError, match="wrong"):
        cli.main(["fake", "--debug"])


def test_a_bug_stays_visible(fake_command: Callable[..., None]) -> None:
    fake_command(raising(KeyError("bug")))
    with pytest.raises(KeyError):
        cli.main(["fake"])


def test_interrupt(fake_command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    fake_command(raising(KeyboardInterrupt()))
    assert cli.main(["fake"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_a_closed_pipe_is_no_traceback(flag: str) -> None:
    """`spikeloom --help | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "spikeloom", flag]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1
