"""No command writes into, above or over what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import get_type_hints

import pytest
from typer.testing import CliRunner

from vmat_diffusion.cli import app
from vmat_diffusion.cli.options import fields_of
from vmat_diffusion.cli.program import COMMANDS, function_of
from vmat_diffusion.errors import InputError

# What each command is asked, with IN for a folder that it reads, FILE for a file that it reads, and OUT for
# where it writes. One line for each of its outputs.
ASKED = {
    "plan IN --goals tg119_prostate -o OUT",
    "generate IN --goals tg119_prostate -o OUT",
    "train-generator IN -o OUT",
    "predict IN --goals tg119_prostate -o OUT",
    "check FILE --trajectory csv -o OUT",
    "dose FILE IN -o OUT",
    "qa FILE IN -o OUT",
    "trade-off IN -o OUT",
    "influence IN -o OUT",
    "deidentify IN -o OUT",
    "preprocess --raw IN -o OUT",
    "train --config quick --data IN -o OUT",
    "train --config quick --data IN -o elsewhere --cache OUT",
    "fine-tune --site prostate --weights shipped --data IN -o OUT",
    "fine-tune --site prostate --weights shipped --data IN -o elsewhere --cache OUT",
    "mapping unknown IN -o OUT",
    "beam fit --pdd FILE --profiles FILE --output-factors FILE -o OUT",
    "import openkbp IN -o OUT",
    "import dicom IN -o OUT",
    "import nifti IN -o OUT",
    "export nifti IN -o OUT",
    "benchmark openkbp --data IN -o OUT",
    "benchmark openkbp --data IN --csv-out OUT",
    "benchmark plans --data IN --count 1 -o OUT",
    "benchmark trade --data IN --count 1 -o OUT",
    "benchmark gap --data IN -o OUT",
}
# Without an input of the user's, or with outputs that belong beside the input: the weights of a training.
# `simulate` looks at the files of the patients that its data set lists.
NO_INPUT = {"phantom", "demo", "setup", "benchmark tg119", "export-weights", "simulate"}


def command_of(line: str) -> str:
    words = line.split()
    return next(path for path in (" ".join(words[:2]), words[0]) if path in COMMANDS)


def test_every_command_that_writes_is_asked() -> None:
    asked = {command_of(line) for line in ASKED} | NO_INPUT
    for path in COMMANDS:
        names = {f.name for f in fields_of(get_type_hints(function_of(path))["options"])}
        if "out" in names and not path.endswith(" copy"):
            assert path in asked, path


@pytest.mark.parametrize("where", ["equal", "within", "above"])
@pytest.mark.parametrize("line", sorted(ASKED))
def test_outputs_stay_apart_from_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "above" / "in"
    source.mkdir(parents=True)
    file = source / "file.dcm"
    file.write_bytes(b"x")
    read = source if "IN" in line.split() else file
    out = {"equal": read, "within": source / "new", "above": source.parent}[where]
    if read == file and where == "within":
        return  # beside a file is a place like any other
    words = {"IN": str(source), "FILE": str(file), "OUT": str(out)}
    done = CliRunner().invoke(app, [words.get(word, word) for word in line.split()])
    assert isinstance(done.exception, InputError), done.output
    assert "which would be changed or read again" in str(done.exception) or "is a folder" in str(
        done.exception
    )
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["above", "file.dcm", "in"]
