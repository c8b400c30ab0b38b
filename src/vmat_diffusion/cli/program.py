"""The program: its commands, and what goes wrong as a sentence and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from vmat_diffusion import __version__
from vmat_diffusion.cli.options import Command, command
from vmat_diffusion.errors import InputError, limit_of, memory_limit_gb
from vmat_diffusion.lettering import legible

_DEBUG = "VMAT_DEBUG"
# Below, libraries that run out of memory raise exceptions that do not say so.
_SHORT_GB = 4.0


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM where nobody has a use for it, as a sentence and its exit code."""

    def __init__(self, word: str, code: int) -> None:
        super().__init__(f"{word}; nothing unfinished was kept")
        self.code = code


GROUPS = {
    "machine": "The linacs that plans can be made for.",
    "goals": "The goal sheets shipped with the package.",
    "mapping": "The table of structure names.",
    "gate": "The limits of the gate.",
    "beam": "The photon beam of a machine.",
    "import": "Data of others made ready for planning and training.",
    "export": "Cases for other programs.",
    "users": "The users of a review room.",
    "audit": "The audit of a review room.",
    "benchmark": "How good predictions and plans are, on public data.",
}
# The module of each command; its function has the command's name.
COMMANDS = {
    "inspect": "checking",
    "phantom": "planning",
    "plan": "planning",
    "generate": "planning",
    "train-generator": "training",
    "predict": "planning",
    "check": "checking",
    "dvh": "checking",
    "gamma": "checking",
    "dose": "dose",
    "qa": "checking",
    "check-again": "planning",
    "reference-check": "checking",
    "trade-off": "planning",
    "influence": "dose",
    "deidentify": "data",
    "preprocess": "data",
    "split": "data",
    "simulate": "training",
    "train": "training",
    "fine-tune": "training",
    "export-weights": "training",
    "demo": "planning",
    "setup": "site",
    "machine list": "catalogue",
    "machine show": "catalogue",
    "machine copy": "catalogue",
    "goals list": "catalogue",
    "goals show": "catalogue",
    "goals copy": "catalogue",
    "goals check": "catalogue",
    "mapping list": "catalogue",
    "mapping show": "catalogue",
    "mapping copy": "catalogue",
    "mapping unknown": "catalogue",
    "gate list": "catalogue",
    "gate show": "catalogue",
    "gate copy": "catalogue",
    "beam fit": "dose",
    "import openkbp": "data",
    "import dicom": "data",
    "import nifti": "exchange",
    "export nifti": "exchange",
    "send": "network",
    "listen": "network",
    "serve": "room",
    "users add": "room",
    "audit verify": "room",
    "benchmark openkbp": "benchmark",
    "benchmark tg119": "benchmark",
    "benchmark plans": "benchmark",
    "benchmark trade": "benchmark",
    "benchmark gap": "benchmark",
}


def function_of(path: str) -> Callable[[Any], None]:
    """What a command such as `machine show` calls, from its module, which is imported now."""
    module = import_module(f"vmat_diffusion.cli.{COMMANDS[path]}")
    return getattr(module, path.replace(" ", "_").replace("-", "_"))  # type: ignore[no-any-return]


def _built(path: str) -> Any:
    """The command of that path for typer."""
    one = typer.Typer(add_completion=False, rich_markup_mode=None)
    one.command(path.rpartition(" ")[2], cls=Command)(command(function_of(path)))
    return typer.main.get_command(one)


class _Commands(TyperGroup):
    """The commands of the program or of a group; each is made when it is asked for.

    An interrupt that ends one is handed to `main`, which has a sentence for it.
    """

    within = ""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, then those of the groups."""
        names = [path.removeprefix(self.within) for path in COMMANDS if path.startswith(self.within)]
        return [name for name in names if " " not in name] + ([] if self.within else list(GROUPS))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command or group of that name, None where there is none."""
        path = self.within + cmd_name
        if not self.within and cmd_name in GROUPS:
            group = _Commands(
                name=cmd_name, help=GROUPS[cmd_name], no_args_is_help=True, rich_markup_mode=None
            )
            group.within = f"{cmd_name} "
            return group
        return _built(path) if path in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each name with its first sentence."""
        rows = []
        for name in self.list_commands(ctx):
            group = "" if self.within else GROUPS.get(name, "")
            rows.append((name, group or (function_of(self.within + name).__doc__ or "").partition("\n")[0]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Stopped("interrupted", 130) from None


app = typer.Typer(
    name="vmat-diffusion",
    cls=_Commands,
    help="From a contoured CT and clinical goals to a deliverable, checked VMAT plan. "
    "For research; not a medical device.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _terminate(*_: object) -> NoReturn:
    # A second signal must not disturb the clearing up: `timeout` sends two.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped("terminated", 143)


def main() -> None:
    """Run the command line and turn what goes wrong into a sentence and an exit code."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except _Stopped as stopped:
        _fail(str(stopped), stopped.code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        _fail(*_sentence(error))
    finally:
        signal.signal(signal.SIGTERM, before)


def _sentence(error: Exception) -> tuple[str, int]:
    """What a person is told of an exception, and the exit code."""
    if isinstance(error, InputError):
        return str(error), 2
    if limit := limit_of(error):
        return limit, 2
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename}: permission denied; change its permissions or name another place", 2
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename}" if error.filename else str(error), 2
    if (given := memory_limit_gb()) < _SHORT_GB:
        return (
            f"{type(error).__name__}: {error}; only {given:.2g} GB of memory are allowed here (ulimit -v), "
            "which is the likely reason; raise the limit, and report it if it comes again",
            2,
        )
    return (
        f"{type(error).__name__}: {error}. This is a defect of vmat-diffusion {__version__}: "
        "please report it with the output of the same command after `vmat-diffusion --debug`",
        3,
    )


def _fail(sentence: str, code: int) -> None:
    if os.environ.get(_DEBUG):
        traceback.print_exc()
    print(f"Error: {legible(sentence)}", file=sys.stderr)
    sys.exit(code)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of errors (also VMAT_DEBUG=1).")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if debug:
        os.environ[_DEBUG] = "1"
