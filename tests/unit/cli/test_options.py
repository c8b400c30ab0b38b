"""Options of all commands: one word means one thing, each has help, and every source of values agrees."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from vmat_diffusion import cli
from vmat_diffusion.cli.fields import Facts
from vmat_diffusion.cli.options import Command, Spelled, command, fields_of, has_config
from vmat_diffusion.cli.page import with_tables
from vmat_diffusion.cli.program import COMMANDS, GROUPS, function_of
from vmat_diffusion.errors import InputError
from vmat_diffusion.options import Option, settings
from vmat_diffusion.workflow.settings import PlanSettings

PAGE = Path(__file__).resolve().parents[3] / "docs" / "commands.md"
HEAVY = ("numpy", "scipy", "torch", "numba", "pydicom", "matplotlib", "lightning", "distributed")
# What a class reads for the others of the page: the words of a field's help before the first colon.
KINDS = {path: get_type_hints(function_of(path))["options"] for path in COMMANDS}


def _run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["vmat-diffusion", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def _taken(kind: type, *arguments: object) -> tuple[Any, str]:
    """What a command of that dataclass is called with, and what is said on stderr."""
    taken: list[Any] = []

    def spy(options: Any) -> None:
        """Keep what is given."""
        taken.append(options)

    spy.__annotations__ = {"options": kind}
    app = typer.Typer()
    app.command("spy", cls=Command)(command(spy))
    ended = CliRunner().invoke(app, list(map(str, arguments)), prog_name="vmat-diffusion spy")
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    assert ended.exit_code == 0, ended.output
    return taken[0], ended.stderr


def _sample(field: Spelled) -> tuple[list[str], Any]:
    """Words for a command line that give a field a value other than its default, and the value in TOML."""
    if field.flag:
        return [], True
    if field.words:
        return [field.words[-1]], [field.words[-1]] if field.many else field.words[-1]
    if field.metavar == "250,300,off":
        return ["200,off"], "200,off"
    if field.metavar == "X|off":
        return ["250"], 250.0
    if field.mark.text:
        word = {"steer": "Larynx:-5", "avoid_deg": "80:120"}.get(field.name, "201-203")
        return [word], [word] if field.mark.text == "each" else word
    if field.name == "pdu_kb":
        return ["32"], 32
    if field.name == "cases" or (field.name == "case" and not field.mark.positional):
        return ["prostate"], ["prostate"]
    values: dict[Any, tuple[str, Any]] = {
        int: ("3", 3),
        float: ("1.5", 1.5),
        str: ("a", "a"),
        Path: ("p", "p"),
    }
    kind = field.kind
    if get_origin(kind) is tuple:
        inner = [_bare(part) for part in get_args(kind)]
        count = 1 if inner[-1] is Ellipsis else len(inner)
        word, value = values[inner[0]]
        return [word] * count, [value] * count
    if "seconds_per_turn" in field.name:
        return ["60"], 60.0
    if field.name == "samples":
        return ["2"], 2
    if field.name in ("uncertainty", "pull"):
        return ["0.1"], 0.1
    word, value = values[kind]
    return [word], value


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _words(field: Spelled) -> list[str]:
    given, _ = _sample(field)
    return given if field.mark.positional else [field.long, *given]


def _needed(kind: type, *, but: str = "") -> list[str]:
    """The arguments without which a command cannot be called."""
    return [word for f in fields_of(kind) if f.required and f.name != but for word in _words(f)]


@pytest.mark.parametrize("path", [*COMMANDS, *GROUPS, ""])
@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_every_command_has_help(
    path: str, asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(*path.split(), asked, monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: vmat-diffusion") and "--help" in shown
    if path in COMMANDS:
        text = " ".join(shown.split())
        for field in fields_of(KINDS[path]):
            assert f"{' '.join(field.spelling.split())} " in text and field.description.split()[0] in text
    names = {p.rpartition(" ")[2] for p in COMMANDS if p.rpartition(" ")[0] == path}
    if path not in COMMANDS:
        assert names <= {line.split()[0] for line in shown.splitlines() if line.strip()}


def test_help_imports_nothing_heavy() -> None:
    """In one process, so that the whole of what any command's help loads is seen."""
    program = (
        "import sys, contextlib, io\n"
        "from vmat_diffusion import cli\n"
        "from vmat_diffusion.cli.program import COMMANDS, GROUPS\n"
        "for path in [*COMMANDS, *GROUPS, '']:\n"
        "    sys.argv = ['vmat-diffusion', *path.split(), '--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        cli.main()\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_is_explained(path: str) -> None:
    assert (function_of(path).__doc__ or "").strip().endswith(".")
    for field in fields_of(KINDS[path]):
        assert field.description.endswith("."), field.name
        assert field.description[0].isupper(), field.name


@pytest.mark.parametrize("path", COMMANDS)
def test_where_goals_are_chosen_their_conditions_are_as_well(path: str) -> None:
    names = {field.name for field in fields(KINDS[path])}
    assert ("conditions" in names) or "goals" not in names, f"{path} has --goals and no --with"


def test_one_word_means_one_thing() -> None:
    """The same option has one type and one meaning: the words of its help before the colon."""
    meanings: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for path, kind in KINDS.items():
        for field in fields_of(kind):
            name = field.metavar if field.mark.positional else field.long
            words = field.description.partition(":")[0].rstrip(".")
            parts = [] if field.words else [_bare(part) for part in get_args(field.kind)]
            what = "words" if field.words else str(parts or field.kind)
            meanings[name].setdefault((what, words), path)
    # An argument called NAME or DIR says by its command of what.
    # A plan has one limit, the curve of quality against MU one for each of its points.
    meanings.pop("--mu-per-gy")
    several = {n: m for n, m in meanings.items() if len(m) > 1 and n not in ("NAME", "DIR", "FILE", "RUN")}
    assert not several


def test_what_is_written_has_one_option() -> None:
    for path, kind in KINDS.items():
        out = next((f for f in fields_of(kind) if f.name == "out"), None)
        assert out is None or out.mark.short == ("-o",), path
    assert {path for path, kind in KINDS.items() if not issubclass(kind, Facts)} == {
        *("serve", "listen"),  # they say where they listen and then answer browsers and peers alone
        *(f"{group} copy" for group in ("goals", "machine", "mapping", "gate")),
    }


OLD = [
    (path, field.name, old)
    for path, kind in KINDS.items()
    for field in fields_of(kind)
    for old in field.mark.old
]


@pytest.mark.parametrize(("path", "name", "old"), OLD)
def test_old_spellings_are_taken_with_a_hint(path: str, name: str, old: str) -> None:
    kind = KINDS[path]
    field = next(f for f in fields_of(kind) if f.name == name)
    given, _ = _sample(field)
    now, silence = _taken(kind, *_needed(kind, but=name), *_words(field))
    once, said = _taken(kind, *_needed(kind, but=name), *([old] if old.startswith("-") else []), *given)
    assert not silence
    assert getattr(once, name) == getattr(now, name) != field.default
    assert said.count("\n") == 1 and said.startswith(f"Hint: {old} is ")
    assert (field.metavar if field.mark.positional else field.long) in said


def test_old_and_new_spelling_of_one_option_are_refused() -> None:
    kind = KINDS["plan"]
    with pytest.raises(InputError, match="--search-minutes is given twice"):
        _taken(kind, *_needed(kind), "--search-minutes", 2, "--max-minutes", 3)
    with pytest.raises(InputError, match="an argument too many: y"):
        _taken(KINDS["qa"], "x", "y", "--plan", "p", "-o", "out")


def test_arguments_and_old_options_may_be_mixed() -> None:
    taken, _ = _taken(KINDS["qa"], "RP.dcm", "--case", "folder", "-o", "out")
    assert (taken.plan, taken.case) == (Path("RP.dcm"), Path("folder"))
    taken, _ = _taken(KINDS["qa"], "--plan", "RP.dcm", "folder", "-o", "out")
    assert (taken.plan, taken.case) == (Path("RP.dcm"), Path("folder"))


def _toml(values: dict[str, Any]) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


@pytest.mark.parametrize("path", [path for path, kind in KINDS.items() if has_config(kind)])
def test_a_file_gives_what_the_command_line_gives(path: str, tmp_path: Path) -> None:
    found = fields_of(KINDS[path])
    line, _ = _taken(KINDS[path], *(word for f in found for word in _words(f)))
    (tmp_path / "options.toml").write_text(_toml({f.name: _sample(f)[1] for f in found}))
    file, _ = _taken(KINDS[path], "--config", tmp_path / "options.toml")
    assert file == line
    assert any(getattr(file, f.name) != f.default for f in found)


def test_the_command_line_goes_before_the_file_and_the_file_before_the_default(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('goals = "prostate_78"\narcs = 3\nseed = 4\ncollimator_deg = [10, 350]\n')
    taken, _ = _taken(KINDS["plan"], "case", "-o", "out", "--config", file, "--seed", 5)
    assert (taken.goals, taken.arcs, taken.seed, taken.grid_mm) == ("prostate_78", 3, 5, 3.0)
    assert taken.collimator_deg == (10.0, 350.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("archs = 3", "archs is not known; write arcs"),
        ("xyz = 3", "xyz is not known; known are case, goals, out"),
        ("arcs = 9", "--arcs 9 is outside 1 to 6"),
        ("arcs = ", "are no TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_with_one_sentence(
    text: str | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "options.toml"
    if text is not None:
        file.write_text(text)
    asked = ("plan", "case", "--goals", "x", "-o", "out", "--config", str(file))
    assert _run(*asked, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("qa", "RP.dcm", "-o", "out", monkeypatch=monkeypatch) == 2
    assert "qa needs CASE; give it, or see vmat-diffusion qa --help" in capsys.readouterr().err


def _calls() -> Iterator[tuple[str, type, Callable[..., Any]]]:
    """Each command that hands its options on by name: its dataclass and what takes them."""
    for path, kind in KINDS.items():
        tree = ast.parse(inspect.getsource(function_of(path)))
        homes = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "keywords":
                module, name = homes[node.args[0].id]  # type: ignore[attr-defined]
                yield path, kind, getattr(import_module(module or ""), name)


def test_defaults_are_those_of_the_functions() -> None:
    found = list(_calls())
    assert len(found) > 3
    for path, kind, taker in found:
        defaults = {f.name: f.default for f in fields_of(kind)}
        for name, parameter in inspect.signature(taker).parameters.items():
            if name in defaults and parameter.default is not inspect.Parameter.empty:
                # "" and () both say that nothing is asked for.
                assert (parameter.default or None) == (defaults[name] or None), (path, name)


def test_run_records_are_made_of_the_options() -> None:
    """What `run.json` keeps as `settings` are the fields of `plan` but for places and printing."""
    rest = {f.name for f in fields_of(KINDS["plan"])} - {f.name for f in fields(PlanSettings)}
    assert rest == {"case", "out", "overwrite", "json", "quiet", "verbose"}


def test_the_manual_has_the_tables_of_today() -> None:
    """To write them anew: python -m vmat_diffusion.cli.page docs/commands.md"""
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page


def test_a_command_without_a_place_in_the_manual_is_named() -> None:
    page = PAGE.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="gate copy"):
        with_tables(page.replace("<!-- options: gate copy -->\n", ""))


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("vmat-diffusion plan --search", "--search-minutes"),
        ("vmat-diffusion benchmark tg", "tg119"),
        ("vmat-diffusion plan --prior d", "diffusion"),
    ],
)
def test_the_shell_completes(
    words: str, completed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_VMAT_DIFFUSION_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    _run(monkeypatch=monkeypatch)
    assert completed in capsys.readouterr().out.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_completion_is_made(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_VMAT_DIFFUSION_COMPLETE", f"source_{shell}")
    assert _run(monkeypatch=monkeypatch) == 0
    assert "_VMAT_DIFFUSION_COMPLETE" in capsys.readouterr().out


@settings
class Fruit:
    """A class of the tests."""

    kilos: Annotated[float, Field(gt=0, description="Weight.")]
    sort: Annotated[Literal["pear", "plum"], Field(description="Sort."), Option(old=("--kind",))] = "pear"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "--kilos is missing; give it"),
        ({"kilos": 0.0}, "--kilos 0 is not above 0; choose another"),
        ({"kilos": 1.0, "sort": "fig"}, "--sort fig is not known; choose pear or plum"),
        ({"kilos": 1.0, "price": 2}, "setting price is not known; known are kilos, sort"),
        ({"kilos": float("inf")}, "--kilos inf is not above 0"),
        ({"kilos": "many"}, "--kilos many: Input should be a valid number"),
    ],
)
def test_settings_are_checked_as_they_are_made(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Fruit(**values)


def test_settings_cannot_be_changed_and_are_of_the_right_type() -> None:
    pear = Fruit(kilos=2)
    assert isinstance(pear.kilos, float) and pear == Fruit(kilos=2.0, sort="pear")
    with pytest.raises(AttributeError):
        pear.kilos = 3  # type: ignore[misc]
