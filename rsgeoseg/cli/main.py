"""Entry point of the command line: gathers the commands, turns every error into one line and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Annotated

import typer

import rsgeoseg
from rsgeoseg.cli import common
from rsgeoseg.errors import RsGeoSegError, UsageError
from rsgeoseg.heap import leave_objects

_COMMANDS = ("run", "info", "models", "weights", "dataset", "train", "evaluate", "preview", "doctor")
_CANCELLED = 130
_UNEXPECTED = 1
_ClickError = typer.BadParameter.__mro__[2]  # click's base class, which typer bundles but does not export
assert _ClickError.__name__ == "ClickException"


def build_app() -> typer.Typer:
    """Put the commands together, in the order in which ``--help`` lists them."""
    app = typer.Typer(
        name="rsgeoseg",
        rich_markup_mode=None,  # importing rich would cost half of the start-up time
        pretty_exceptions_enable=False,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "token_normalize_func": lambda token: token.replace("_", "-"),
            "max_content_width": 110,
        },
    )
    app.callback()(_root)
    for name in _COMMANDS:
        module = import_module(f"rsgeoseg.cli.{name}")
        group = getattr(module, f"{name}_app", None)
        if group is None:
            app.command(name)(getattr(module, name))
        else:  # a command with commands of its own
            app.add_typer(group, name=name)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        print(rsgeoseg.__version__)
        raise typer.Exit


def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Large georeferenced rasters to georeferenced polygons with promptable segmentation models."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Args:
        arguments: without the program's name; None = those of this process.
    """
    code = invoke(sys.argv[1:] if arguments is None else arguments)
    leave_objects()
    sys.exit(code)


def invoke(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors become one line on stderr, ``-v`` adds the traceback."""
    _terminate_like_ctrl_c()
    # Threads that wait by spinning make a run three times slower as soon as another program wants a core; asleep they
    # cost nothing when the machine is idle. Read once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = build_app()(args=arguments or ["--help"], prog_name="rsgeoseg", standalone_mode=False)
    except RsGeoSegError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("cancelled: nothing was written", _CANCELLED)
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
        return _UNEXPECTED
    except _ClickError as error:  # type: ignore[misc]
        return _fail(_one_line(error.format_message()), error.exit_code)
    except Exception as error:  # noqa: BLE001  (the last handler of the program: nothing above would see it)
        return _fail(*_unexpected(error))
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    if logging.getLogger("rsgeoseg").isEnabledFor(logging.DEBUG):
        traceback.print_exc()
    common.complain("error", message)
    return code


def _unexpected(error: Exception) -> tuple[str, int]:
    """Put an error that is none of ours into one line, with its exit code."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"a file name is too long for this system: {str(error.filename)[:80]}...", UsageError.exit_code
    return f"{type(error).__name__}: {error} (this should not happen: run again with -v for the place)", _UNEXPECTED


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _terminate_like_ctrl_c() -> None:
    """Let a batch system's SIGTERM clean up as Ctrl-C does."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: the embedding program owns the signals
        return


if __name__ == "__main__":
    main()
