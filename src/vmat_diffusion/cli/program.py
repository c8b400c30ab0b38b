"""The program: its commands, and what goes wrong as a sentence and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from vmat_diffusion import __version__
from vmat_diffusion.cli import (
    beam,
    benchmark,
    catalogue,
    checking,
    data,
    imports,
    influence,
    planning,
    prediction,
    simulation,
    trade_off,
    training,
)
from vmat_diffusion.cli import benchmark as benchmark_plans
from vmat_diffusion.cli import benchmark as benchmark_tg119
from vmat_diffusion.errors import InputError

_DEBUG = "VMAT_DEBUG"


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM where nobody has a use for it, as a sentence and its exit code."""

    def __init__(self, word: str, code: int) -> None:
        super().__init__(f"{word}; nothing unfinished was kept")
        self.code = code


class _Commands(TyperGroup):
    """The commands; an interrupt that ends one is handed to `main`, which has a sentence for it."""

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
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
machine_app = typer.Typer(help="The linacs that plans can be made for.", no_args_is_help=True)
beam_app = typer.Typer(help="The photon beam of a machine.", no_args_is_help=True)
goals_app = typer.Typer(help="The goal sheets shipped with the package.", no_args_is_help=True)
import_app = typer.Typer(help="Public data made ready for training.", no_args_is_help=True)
benchmark_app = typer.Typer(help="How good dose model and plans are, on public data.", no_args_is_help=True)
_COMMANDS: tuple[Callable[..., None], ...] = (
    planning.inspect,
    planning.phantom,
    planning.plan,
    prediction.predict,
    checking.check,
    checking.dvh,
    checking.gamma,
    checking.dose,
    checking.qa,
    checking.reference_check,
    trade_off.trade_off,
    influence.influence,
    data.deidentify,
    data.preprocess,
    imports.split,
    simulation.simulate,
    training.train,
    training.fine_tune,
    training.export_weights,
    planning.demo,
)
for _command in _COMMANDS:
    app.command()(_command)
machine_app.command("list")(catalogue.machine_list)
machine_app.command("show")(catalogue.machine_show)
beam_app.command("fit")(beam.beam_fit)
import_app.command("openkbp")(imports.import_openkbp)
import_app.command("dicom")(imports.import_dicom)
benchmark_app.command("openkbp")(benchmark.benchmark_openkbp)
benchmark_app.command("tg119")(benchmark_tg119.benchmark_tg119)
benchmark_app.command("plans")(benchmark_plans.benchmark_plans)
goals_app.command("list")(catalogue.goals_list)
goals_app.command("show")(catalogue.goals_show)
app.add_typer(machine_app, name="machine")
app.add_typer(beam_app, name="beam")
app.add_typer(goals_app, name="goals")
app.add_typer(import_app, name="import")
app.add_typer(benchmark_app, name="benchmark")


def _terminate(*_: object) -> NoReturn:
    # A second signal must not disturb the clearing up: `timeout` sends two.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped("terminated", 143)


def main() -> None:
    """Run the command line and turn what goes wrong into a sentence and an exit code."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except InputError as error:
        _fail(str(error), 2)
    except _Stopped as stopped:
        _fail(str(stopped), stopped.code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error), 2)
    except Exception as error:
        _fail(
            f"{type(error).__name__}: {error}. This is a defect of vmat-diffusion {__version__}: "
            "please report it with the output of the same command after `vmat-diffusion --debug`",
            3,
        )
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(sentence: str, code: int) -> None:
    if os.environ.get(_DEBUG):
        traceback.print_exc()
    print(f"Error: {sentence}", file=sys.stderr)
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
