"""Whatever is done to the files, reading ends in a Case, Plan or Dose or in an InputError."""

from __future__ import annotations

import contextlib
import io
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from dicom_files import ct_series, cylinder_hu, rt_dose, rt_plan, save, structure_set
from pydicom import config, dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dicom import inspect, read_case, read_dose, read_plan
from vmat_diffusion.errors import InputError
from vmat_diffusion.plan import Plan

FILES = 2000
# No single mutated file may stall the program; the unharmed patient takes some 20 ms.
SECONDS_PER_FILE = 5.0

_VALUES: dict[str, list[object]] = {
    "DS": [float("nan"), float("inf"), -1e300, 0, "abc", [1, 2], "", "1\\x\\3", -0.0, 1e-300],
    "IS": ["2147483648", -1, 0, "1.5", "x", [3, 4], 10**9],
    "US": [0, 1, 65535, 8],
    "UI": ["1.2.3", "", "not a uid", "1.2.840.10008.5.1.4.1.1.2"],
    "CS": ["", "NONSENSE", "A\\B", "PLAN", "POINT", "x" * 200],
    "LO": ["", "PTV70", "External", "cord\0", "\u4e2d\u6587", "../../x", "<script>"],
    "SQ": [[]],
    "OW": [b"", b"\0", b"\xff" * 7, b"\1" * 100_000],
    "FD": [float("nan"), 1e308],
    "UN": [b"\0\1\2\3", b""],
}


@pytest.fixture(scope="module")
def originals() -> dict[str, bytes]:
    images = ct_series(
        cylinder_hu(4, 12), spacing_mm=(4.0, 4.0), origins_mm=[(-22, -22, 3 * k) for k in range(4)]
    )
    datasets = {f"ct{k}": image for k, image in enumerate(images)}
    datasets |= {"rs": structure_set(images), "rd": rt_dose(), "rp": rt_plan()}
    return {name: _bytes(dataset) for name, dataset in datasets.items()}


def _bytes(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    save(dataset, stream)  # type: ignore[arg-type]
    return stream.getvalue()


@contextlib.contextmanager
def _lenient_writing() -> Iterator[None]:
    """Let pydicom write what breaks the standard: that is the point here."""
    mode = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.writing_validation_mode = mode


def _elements(dataset: Dataset) -> list[tuple[Dataset, DataElement]]:
    """All elements at every depth with the data set that holds them."""
    out: list[tuple[Dataset, DataElement]] = []
    for element in dataset:
        out.append((dataset, element))
        if element.VR == "SQ":
            for item in element.value:
                out += _elements(item)
    return out


def _mutate_elements(raw: bytes, draw: random.Random) -> bytes:
    """Drop, retype, replace, or duplicate up to three elements or sequence items."""
    dataset = dcmread(io.BytesIO(raw))
    for _ in range(draw.randint(1, 3)):
        found = _elements(dataset)
        if not found:
            break
        holder, element = draw.choice(found)
        action = draw.choice(["drop", "value", "retype", "item", "digits"])
        if action == "drop":
            del holder[element.tag]
        elif action == "item" and element.VR == "SQ" and len(element.value):
            item = draw.choice(list(element.value))
            element.value = [*element.value, item] if draw.random() < 0.5 else list(element.value)[1:]
        elif action == "digits" and element.VR in ("DS", "IS"):
            values = list(element.value) if element.VM > 1 else [element.value]
            values[draw.randrange(len(values))] = draw.choice([0, 1, -1, 7, 1e4, -1e9])
            holder[element.tag] = DataElement(element.tag, "DS", values)
        else:
            vr = element.VR if action == "value" and element.VR in _VALUES else draw.choice(sorted(_VALUES))
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                holder[element.tag] = DataElement(element.tag, vr, draw.choice(_VALUES[vr]))
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def _mutate_bytes(raw: bytes, draw: random.Random) -> bytes:
    """Truncate, overwrite, insert, or cut out bytes anywhere in the file."""
    data = bytearray(raw)
    action = draw.choice(["truncate", "flip", "flip", "insert", "cut", "lengths"])
    at = draw.randrange(len(data))
    if action == "truncate":
        return bytes(data[:at])
    if action == "flip":
        for _ in range(draw.choice([1, 4, 64])):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif action == "insert":
        data[at:at] = draw.randbytes(draw.randint(1, 9))
    elif action == "cut":
        del data[at : at + draw.randint(1, 400)]
    else:
        data[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"])
    return bytes(data)


def _mutated(raw: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.6:
        try:
            with _lenient_writing():
                return _mutate_elements(raw, draw)
        except Exception:  # some values cannot be written by pydicom at all: mutate the bytes instead
            return _mutate_bytes(raw, draw)
    return _mutate_bytes(raw, draw)


def _outcome(read: Callable[[], object]) -> str:
    """Type of what came out; any exception but an InputError goes through and fails the test."""
    started = time.monotonic()
    try:
        result = read()
    except InputError as refusal:
        sentence = str(refusal)
        assert sentence and "\n" not in sentence
        assert "Secret" not in sentence and "SECRET" not in sentence
        return "refused"
    finally:
        assert time.monotonic() - started < SECONDS_PER_FILE
    assert isinstance(result, Case | Dose | Plan)
    if isinstance(result, Case):
        assert np.all(np.isfinite(result.hu)) and "SECRET" not in result.id
    return type(result).__name__


def test_2000_mutated_files_end_in_a_case_or_an_input_error(
    originals: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(20240607)
    for name, raw in originals.items():
        (tmp_path / name).write_bytes(raw)
    assert _outcome(lambda: read_case(tmp_path)) == "Case"
    kinds = ["ct0", "ct1", "ct2", "ct3", "rs", "rs", "rs", "rd", "rd", "rp", "rp"]
    tally: Counter[tuple[str, str]] = Counter()
    for k in range(FILES):
        name = kinds[k % len(kinds)]
        path = tmp_path / name
        path.write_bytes(_mutated(originals[name], draw))
        extra = tmp_path / "copy"
        if k % 50 == 0:  # a duplicated slice beside the mutated file
            extra.write_bytes(originals["ct1"] if k % 100 else _mutated(originals["ct1"], draw))
        reader = {"rd": read_dose, "rp": read_plan}.get(name)
        if reader:
            tally[name, _outcome(lambda reader=reader, path=path: reader(path))] += 1
        if not reader or k % 5 == 0:
            tally["case", _outcome(lambda: read_case(tmp_path))] += 1
        if k % 20 == 0:
            assert inspect(tmp_path).lines()
        path.write_bytes(originals[name])
        extra.unlink(missing_ok=True)
    # The mutations must neither all be harmless nor all be fatal, else the test would say nothing.
    for kind, good in (("case", "Case"), ("rd", "Dose"), ("rp", "Plan")):
        total = tally[kind, good] + tally[kind, "refused"]
        assert 0.1 < tally[kind, good] / total < 0.9, tally
    captured = capfd.readouterr()
    assert "Secret" not in captured.err + captured.out


def test_pixel_counts_beyond_all_memory_are_refused(tmp_path: Path) -> None:
    images = ct_series()
    for image in images:
        image.Rows = image.Columns = 65535
    for k, dataset in enumerate([*images, structure_set(images)]):
        save(dataset, tmp_path / f"{k}")
    with pytest.raises(InputError, match=r"voxels|pixels"):
        read_case(tmp_path)


def test_frame_counts_beyond_all_memory_are_refused(tmp_path: Path) -> None:
    dataset = rt_dose()
    dataset.NumberOfFrames = 2**31 - 1
    with pytest.raises(InputError, match="frames"):
        read_dose(save(dataset, tmp_path / "rd"))
