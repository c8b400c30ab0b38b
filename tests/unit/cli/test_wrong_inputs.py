"""Every command with nothing, and with the wrong thing in every place: a sentence, exit code 2, no file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from dicom_files import ct_series, rt_dose, rt_plan, structure_set, write_patient

from vmat_diffusion import cli
from vmat_diffusion.cli.program import COMMANDS

# How each command is called: words in braces are places for files and folders, of which one at a time is
# wrong. A place that has no right thing here ("?") is left out, or absent, while another one is wrong.
CALLS: Mapping[str, str] = {
    "inspect": "{case}",
    "phantom": "{name?} --out OUT",
    "plan": "{case} --goals {sheet} --out OUT --gate {gate?} --mapping {mapping?} --ct-table {table?} "
    "--prior {prior?}",
    "generate": "{case} --goals {sheet} --out OUT --generator {weights?} --gate {gate?} --mapping {mapping?}",
    "train-generator": "{maps?} --out OUT",
    "predict": "{case} --goals {sheet} --out OUT --weights {weights?} --mapping {mapping?}",
    "check": "{plan} --machine {machine}",
    "dvh": "{case} {dose} --goals {sheet} --mapping {mapping?}",
    "gamma": "{dose} {dose}",
    "dose": "{plan} {case} --out OUT --mapping {mapping?} --ct-table {table?} --machine {machine}",
    "qa": "{plan} {case} --out OUT --dose {dose} --goals {sheet} --gate {gate?}",
    "check-again": "{run?}",
    "reference-check": "{references?}",
    "trade-off": "{run?} {run?} --out OUT",
    "influence": "{case} --out OUT.npz --mapping {mapping?}",
    "deidentify": "{case} --out OUT --mapping {mapping?}",
    "preprocess": "--raw {raw?} --out OUT --cluster serial --mapping {mapping?} --site-table {sites?}",
    "split": "{dataset?}",
    "simulate": "--data {dataset?} --out OUT --cluster serial",
    "train": "--config {recipe?} --data {dataset?} --out OUT",
    "fine-tune": "--site lung --weights {weights?} --data {dataset?} --out OUT",
    "export-weights": "{training?}",
    "machine show": "{machine}",
    "machine copy": "{name?} --out OUT",
    "goals show": "{sheet}",
    "goals check": "{sheet} {case} --mapping {mapping?}",
    "goals copy": "{name?} --out OUT",
    "mapping show": "{mapping?}",
    "mapping copy": "{name?} --out OUT",
    "mapping unknown": "{case} --mapping {mapping?}",
    "gate show": "{gate?}",
    "gate copy": "{name?} --out OUT",
    "beam fit": "--pdd {scan?} --profiles {scan?} --output-factors {table?} --out OUT.toml",
    "import openkbp": "{patients?} --out OUT",
    "import dicom": "{case} --out OUT",
    "import nifti": "{volumes?} --out OUT",
    "export nifti": "{case} --out OUT",
    "send": "{run?} PEER@127.0.0.1:9",
    "listen": "--rules {rules?} --allow A --data OUT",
    "benchmark openkbp": "--data {patients?}",
    "benchmark tg119": "tg119_cshape --out OUT --gate {gate?}",
    "benchmark plans": "--data {patients?} --count 1 --out OUT",
    "benchmark trade": "--data {patients?} --count 1 --out OUT",
    "benchmark gap": "--data {patients?} --out OUT",
}
# Commands without a place for a file or folder.
WITHOUT = {"demo", "setup", "machine list", "goals list", "mapping list", "gate list"}
# Their folder is made where there is none.
WITHOUT |= {"serve", "users add", "audit verify"}
WRONG = ("absent", "text", "empty", "unrelated", "ct", "broken", "case", "plan", "dose")
SHEET = """title = "t"
site = "head_neck"
source = "x"
fractions = 30
[prescription_gy]
PTV_70 = 70
[normalization]
PTV_70 = "D95% = 70 Gy"
[[goals]]
structure = "PTV_70"
goal = "D95% >= 66 Gy"
source = "x"
priority = 1
"""


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("things")
    images = ct_series()
    case = write_patient(root / "case", images, structure_set(images), rt_plan(), rt_dose())
    (root / "text").write_text("hello")
    (root / "empty").mkdir()
    (root / "unrelated").mkdir()
    (root / "unrelated" / "a.csv").write_text("a,b\n1,2\n")
    (root / "sheet.toml").write_text(SHEET)
    files = sorted(case.iterdir())
    (root / "broken").write_bytes(files[-1].read_bytes()[:900])
    names = {"ct": files[0], "plan": files[-2], "dose": files[-1], "case": case, "sheet": root / "sheet.toml"}
    places = {name: root / name for name in ("absent", "text", "empty", "unrelated", "broken")}
    return {key: str(path) for key, path in (names | places).items()} | {"machine": "generic_6mv"}


def wrong_calls() -> list[tuple[str, int, str]]:
    """Each place of each command with each thing that it is not for."""
    out = []
    for command, call in CALLS.items():
        for place, word in enumerate(call.split()):
            kind = word.strip("{}?")
            # A raw folder of DICOM files is one case.
            right = {kind, "case"} if kind == "raw" else {kind}
            out += [(command, place, wrong) for wrong in WRONG if word[0] == "{" and wrong not in right]
    return out


def test_every_command_has_its_call() -> None:
    assert CALLS.keys() | WITHOUT == set(COMMANDS) and not CALLS.keys() & WITHOUT


def ended(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The sentence of a command that must refuse; it must write nothing."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["vmat-diffusion", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    sentences = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert stopped.value.code == 2, (arguments, out, err)
    assert len(sentences) == 1 and not list(folder.iterdir()), (arguments, out, err)
    assert "Traceback" not in err and "Errno" not in err, (arguments, err)
    body = sentences[0].removeprefix("Error: ")
    # No label twice in a row, as in `goal sheet x: goal sheet x: ...`.
    parts = body.split(": ")
    assert all(a != b for a, b in pairwise(parts)), body
    return body


@pytest.mark.parametrize("command", [name for name in CALLS if "copy" not in name and name != "mapping show"])
def test_a_command_without_arguments_says_what_it_needs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if command in (
        "gate show",
        "benchmark tg119",
        "benchmark gap",
        "preprocess",
    ):  # defaults stand for all of it
        pytest.skip("needs nothing")
    assert "--help" in ended(command.split(), tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(("command", "place", "wrong"), wrong_calls())
def test_the_wrong_thing_in_a_place_is_named_with_what_to_do(
    command: str,
    place: int,
    wrong: str,
    things: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = command.split()
    words = CALLS[command].split()
    for n, word in enumerate(words):
        if n == place:
            arguments.append(things[wrong])
        elif word[0] != "{":
            arguments.append(word)
        elif not word.endswith("?}"):
            arguments.append(things[word.strip("{}")])
        elif n and words[n - 1].startswith("--"):
            arguments.pop()
        else:
            arguments.append(things["absent"])
    sentence = ended(arguments, tmp_path, monkeypatch, capsys)
    assert ";" in sentence or "needed" in sentence, sentence
    assert "defect" not in sentence
