"""Mutated files of a data set give a case or a sentence (InputError), never a traceback.

A few by default; `--slow` tries 2,000 training cases and 2,000 text files.
"""

from __future__ import annotations

import io
import json
import random
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from training_cases import save_dataset, small_training

from vmat_diffusion.benchmark import journal
from vmat_diffusion.dataset.cases import load_case
from vmat_diffusion.dataset.index import entries_of
from vmat_diffusion.dataset.splits import load_splits
from vmat_diffusion.dataset.tables import read_dataset
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.goals import load_goals
from vmat_diffusion.machine import load_machine, machine_text
from vmat_diffusion.qa import gate_limits

_FEW, _MANY = 60, 2000
_SECONDS = 20.0
# Values that break a program which trusts its files.
_NUMBERS = (0, -1, 1, 1e308, -1e308, 1e30, -0.5, 2**31, 2**63 - 1, float("nan"), float("inf"), 1e-320)
_TEXTS = ("", "\x00", "../../etc/passwd", "=1+1", "$\\alpha$", "Ω" * 50, "null", "true", "x" * 10_000)


def _value(draw: random.Random) -> object:
    return draw.choice(
        [
            draw.choice(_NUMBERS),
            draw.choice(_TEXTS),
            None,
            True,
            [],
            {},
            [draw.choice(_NUMBERS)] * 3,
            {"a": draw.choice(_TEXTS)},
        ]
    )


def _mutated_tree(draw: random.Random, tree: object) -> object:
    """A JSON tree with one place changed, removed or added."""
    places = [()]
    stack = [((), tree)]
    while stack:
        way, node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((*way, key))
            stack.append(((*way, key), node[key]))
    tree = json.loads(json.dumps(tree))
    way = draw.choice(places)
    if not way:
        return _value(draw)
    node = tree
    for key in way[:-1]:
        node = node[key]
    if draw.random() < 0.3:
        del node[way[-1]]
    elif isinstance(node, dict) and draw.random() < 0.2:
        node["more"] = _value(draw)
    else:
        node[way[-1]] = _value(draw)
    return tree


def _bytes_changed(draw: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    kind = draw.randrange(4)
    if kind == 0:
        return bytes(out[: draw.randrange(len(out) + 1)])
    for _ in range(draw.choice([1, 1, 3, 20])):
        at = draw.randrange(len(out))
        if kind == 1:
            out[at] = draw.randrange(256)
        elif kind == 2:
            del out[at : at + draw.randrange(1, 9)]
        else:
            out[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
        if not out:
            break
    return bytes(out)


def _mutated_array(draw: random.Random, values: np.ndarray) -> np.ndarray:
    kind = draw.randrange(7)
    if kind == 0:
        return values.astype(draw.choice(["f2", "f4", "f8", "i1", "i8", "u8", "c16", "U5", "b"]))
    if kind == 1:
        return values.ravel()[: draw.randrange(max(values.size, 1))]
    if kind == 2:
        return np.expand_dims(values, 0)
    if kind == 3:
        return np.zeros(draw.choice([(), (0,), (3,), (0, 0, 0), (2, 3, 4)]), values.dtype)
    if kind == 4:
        return np.concatenate([values.ravel()] * 2)
    out = np.array(values)
    if out.size and out.dtype.kind in "iufb":
        with np.errstate(all="ignore"):
            out.flat[draw.randrange(out.size)] = np.array(draw.choice(_NUMBERS[:-1])).astype(out.dtype)
    elif out.size:
        out = out.astype("U300")
        out.flat[draw.randrange(out.size)] = draw.choice(_TEXTS)[:300]
    return out


def _mutated_npz(draw: random.Random, path: Path) -> bytes:
    kind = draw.randrange(4)
    if kind == 0:
        return _bytes_changed(draw, path.read_bytes())
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    name = draw.choice(list(arrays))
    if kind == 1:
        del arrays[name]
    elif kind == 2:
        arrays["meta"] = np.array(json.dumps(_mutated_tree(draw, json.loads(str(arrays["meta"])))))
    else:
        arrays[name] = _mutated_array(draw, arrays[name])
    stream = io.BytesIO()
    with np.errstate(all="ignore"):
        np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _a_case_or_a_sentence(read: Callable[[], object], what: str) -> None:
    started = time.monotonic()
    try:
        read()
    except InputError as fault:
        assert str(fault).strip(), what
    assert time.monotonic() - started < _SECONDS, what


def _sound(path: Path) -> None:
    case = load_case(path).case
    if case.reference_dose is not None:
        assert case.reference_dose.gy.min() >= 0 and case.reference_dose.gy.max() <= 1000


def _rounds(request: pytest.FixtureRequest) -> int:
    return _MANY if request.config.getoption("--slow") else _FEW


def test_training_cases(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    save_dataset(tmp_path, [small_training()])
    whole = next(tmp_path.glob("*.npz"))
    for seed in range(_rounds(request)):
        path = tmp_path / "mutant.npz"
        path.write_bytes(_mutated_npz(random.Random(seed), whole))
        _a_case_or_a_sentence(lambda path=path: _sound(path), f"seed {seed}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 2**20 or _rounds(request) == _FEW


def _texts(folder: Path) -> dict[str, tuple[Path, Callable[[Path], object], bool]]:
    """Each file with its reader, and whether it holds JSON."""
    save_dataset(
        folder, [small_training("case_1"), small_training("case_2")], {"case_1": "train", "case_2": "test"}
    )
    (folder / "dataset.json").write_text(json.dumps({"settings": {"a": 1}, "shape": [8, 16, 16]}))
    sheet = (
        'title = "t"\nsite = "head_neck"\nsource = "s"\nfractions = 30\n[prescription_gy]\nPTV_60 = 60\n'
        '[normalization]\nPTV_60 = "D95% = 60 Gy"\n[[goals]]\nstructure = "SpinalCord"\n'
        'goal = "max <= 45 Gy"\npriority = 1\nsource = "p"\n'
    )
    (folder / "sheet.toml").write_text(sheet)
    (folder / "machine.toml").write_text(machine_text("generic_6mv"))
    (folder / "gate.toml").write_text((Path(journal.__file__).parents[1] / "qa" / "gate.toml").read_text())
    return {
        "index": (folder / "index.jsonl", lambda p: entries_of(p.parent), False),
        "splits": (folder / "splits.json", load_splits, True),
        "dataset": (folder / "dataset.json", lambda p: read_dataset(p.parent), True),
        "sheet": (folder / "sheet.toml", load_goals, False),
        "machine": (folder / "machine.toml", load_machine, False),
        "gate": (folder / "gate.toml", lambda p: gate_limits(p, 0.02), False),
    }


@pytest.mark.parametrize("kind", ["index", "splits", "dataset", "sheet", "machine", "gate"])
def test_text_files(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    path, read, _ = _texts(tmp_path)[kind]
    whole = path.read_bytes()
    for seed in range(_rounds(request) // 6 + 1):
        draw = random.Random(seed)
        if kind in ("splits", "dataset", "index") and draw.random() < 0.6:
            lines = whole.decode().splitlines() if kind == "index" else [whole.decode()]
            at = draw.randrange(len(lines))
            lines[at] = json.dumps(_mutated_tree(draw, json.loads(lines[at])))
            path.write_text("\n".join(lines))
        elif kind in ("sheet", "machine", "gate") and draw.random() < 0.6:
            words = whole.decode().split(" ")
            words[draw.randrange(len(words))] = str(draw.choice([*_NUMBERS, *_TEXTS[:-1]]))
            path.write_text(" ".join(words))
        else:
            path.write_bytes(_bytes_changed(draw, whole))
        _a_case_or_a_sentence(lambda: read(path), f"{kind}, seed {seed}")


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "1" * 10_000, '{"a": 1e999}', "NaN"])
def test_json_bombs(tmp_path: Path, text: str) -> None:
    _texts(tmp_path)
    (tmp_path / "index.jsonl").write_text(text)
    (tmp_path / "splits.json").write_text(text)
    for read in (lambda: entries_of(tmp_path), lambda: load_splits(tmp_path / "splits.json")):
        with pytest.raises(InputError):
            read()


def test_arrays_that_would_fill_the_memory_and_pickles_are_refused(tmp_path: Path) -> None:
    save_dataset(tmp_path, [small_training()])
    whole = next(tmp_path.glob("*.npz"))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i2", "fortran_order": False, "shape": (10_000, 10_000, 10_000)}
    )
    objects = io.BytesIO()
    np.lib.format.write_array(objects, np.array([{"a": 1}], object))
    for content, told in ((header.getvalue(), "GiB"), (objects.getvalue(), "objects")):
        path = tmp_path / "bomb.npz"
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                target.writestr(name, content if name == "hu.npy" else source.read(name))
        with pytest.raises(InputError, match=told):
            load_case(path)


def test_a_negative_step_makes_no_negative_dose(tmp_path: Path) -> None:
    save_dataset(tmp_path, [small_training()])
    with np.load(next(tmp_path.glob("*.npz"))) as file:
        arrays = {name: file[name] for name in file.files}
    for step in (-0.1, 0.0, np.nan, 1e308):
        np.savez(tmp_path / "bad.npz", **{**arrays, "dose_step_gy": np.float64(step)})
        with pytest.raises(InputError, match="dose_step_gy"):
            load_case(tmp_path / "bad.npz")
