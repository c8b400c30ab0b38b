"""Files changed at random, by a generator that decides all: bytes, texts, trees, arrays, DICOM, tensors."""

from __future__ import annotations

import contextlib
import io
import json
import random
import warnings
import zipfile
from collections.abc import Iterator

import numpy as np
import torch
from pydicom import config, dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

# Values that break a program which trusts its files.
NUMBERS = (0, -1, 1, 1e308, -1e308, 1e30, -0.5, 2**31, 2**63 - 1, float("nan"), float("inf"), 1e-320)
TEXTS = ("", "\x00", "../../etc/passwd", "=1+1", "$\\alpha$", "Ω" * 50, "null", "true", "x" * 10_000)
# What is nested or counted beyond all use.
BOMBS = (
    "[" * 100_000,
    '{"a":' * 50_000,
    "a = " + "[" * 50_000,
    "a = " + "{b = " * 20_000,
    "9" * 10_000,
    "1e999",
    "-1e999",
    "0x" + "f" * 5_000,
    "1" + "_1" * 3_000,
)

_ELEMENTS: dict[str, list[object]] = {
    "DS": [float("nan"), float("inf"), -1e300, 0, "abc", [1, 2], "", "1\\x\\3", -0.0, 1e-300, [0.0] * 30_000],
    "IS": ["2147483648", -1, 0, "1.5", "x", [3, 4], 10**9, 10**12],
    "US": [0, 1, 65535, 8],
    "UI": ["1.2.3", "", "not a uid", "1.2.840.10008.5.1.4.1.1.2", "1." * 200],
    "CS": ["", "NONSENSE", "A\\B", "PLAN", "POINT", "x" * 200],
    "LO": ["", "PTV70", "External", "cord\0", "\u4e2d\u6587", "../../x", "<script>", "=1+1", "x" * 100_000],
    "PN": ["", "A^B^C^D^E^F", "\x1b$B"],
    "DA": ["20240131", "0", "99999999"],
    "SQ": [[]],
    "OW": [b"", b"\0", b"\xff" * 7, b"\1" * 100_000],
    "FD": [float("nan"), 1e308],
    "UN": [b"\0\1\2\3", b""],
}


def value(draw: random.Random) -> object:
    """A value of JSON that nobody expects."""
    return draw.choice(
        [
            draw.choice(NUMBERS),
            draw.choice(TEXTS),
            None,
            True,
            [],
            {},
            [draw.choice(NUMBERS)] * 3,
            {"a": draw.choice(TEXTS)},
        ]
    )


def tree_changed(draw: random.Random, tree: object) -> object:
    """A JSON tree with one place changed, removed or added."""
    places: list[tuple] = [()]
    stack: list[tuple[tuple, object]] = [((), tree)]
    while stack:
        way, node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((*way, key))
            stack.append(((*way, key), node[key]))  # type: ignore[index]
    tree = json.loads(json.dumps(tree))
    way = draw.choice(places)
    if not way:
        return value(draw)
    node = tree
    for key in way[:-1]:
        node = node[key]  # type: ignore[index]
    if draw.random() < 0.3:
        del node[way[-1]]  # type: ignore[attr-defined]
    elif isinstance(node, dict) and draw.random() < 0.2:
        node["more"] = value(draw)
    else:
        node[way[-1]] = value(draw)  # type: ignore[index]
    return tree


def bytes_changed(draw: random.Random, data: bytes) -> bytes:
    """Bytes cut off, overwritten, removed or inserted."""
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


def text_changed(draw: random.Random, data: bytes) -> bytes:
    """A word, a line or a number of a text replaced, a line doubled, a bomb put in, or bytes changed."""
    kind = draw.randrange(6)
    text = data.decode("utf-8", "replace")
    lines = text.split("\n")
    at = draw.randrange(len(lines))
    if kind == 0:
        words = text.split(" ")
        words[draw.randrange(len(words))] = str(draw.choice([*NUMBERS, *TEXTS[:-1]]))
        return " ".join(words).encode()
    if kind == 1:
        cells = lines[at].replace(",", " , ").split()
        if cells:
            cells[draw.randrange(len(cells))] = str(draw.choice([*NUMBERS, *TEXTS]))
        lines[at] = " ".join(cells)
    elif kind == 2:
        lines[at:at] = [lines[draw.randrange(len(lines))]] * draw.choice([1, 1, 50])
    elif kind == 3:
        del lines[at]
    elif kind == 4:
        head, mark, _ = lines[at].partition("=")
        lines[at] = draw.choice(BOMBS) if not mark or draw.random() < 0.3 else f"{head}= {draw.choice(BOMBS)}"
    else:
        return bytes_changed(draw, data or b"\n")
    return "\n".join(lines).encode()


def json_changed(draw: random.Random, data: bytes) -> bytes:
    """One of the lines of JSON with a changed tree, or the text changed."""
    if draw.random() < 0.4:
        return text_changed(draw, data)
    lines = data.decode().split("\n")
    try:
        tree = json.loads(data)
        return json.dumps(tree_changed(draw, tree)).encode()
    except ValueError:
        at = draw.choice([k for k, line in enumerate(lines) if line.strip()])
        lines[at] = json.dumps(tree_changed(draw, json.loads(lines[at])))
        return "\n".join(lines).encode()


def array_changed(draw: random.Random, values: np.ndarray) -> np.ndarray:
    """An array of another type, shape or size, or with one odd value."""
    kind = draw.randrange(7)
    if kind == 0:
        other = draw.choice(["f2", "f4", "f8", "i1", "i8", "u8", "c16", "U5", "b"])
        return values.astype(other if values.dtype.kind in "iufb" else "U5")
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
            out.flat[draw.randrange(out.size)] = np.array(draw.choice(NUMBERS[:-1])).astype(out.dtype)
    elif out.size:
        out = out.astype("U300")
        out.flat[draw.randrange(out.size)] = draw.choice(TEXTS)[:300]
    return out


def npz_changed(draw: random.Random, data: bytes) -> bytes:
    """An npz with an array changed or removed, its tree of metadata changed, or its bytes."""
    kind = draw.randrange(5)
    if kind == 0:
        return bytes_changed(draw, data)
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    name = draw.choice(list(arrays))
    if kind == 1:
        del arrays[name]
    elif kind == 2 and "meta" in arrays:
        arrays["meta"] = np.array(json.dumps(tree_changed(draw, json.loads(str(arrays["meta"])))))
    elif kind == 3:
        return _header_changed(draw, data, name)
    else:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arrays[name] = array_changed(draw, arrays[name])
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _header_changed(draw: random.Random, data: bytes, name: str) -> bytes:
    """An npz in which one array states another shape or type than it has."""
    shape = draw.choice([(10**5, 10**5, 10**5), (-1,), (2**62, 8), (0,), (3, 2**31), ()])
    header = {
        "descr": draw.choice(["<i2", "<f8", "|O", "<U99", "|V9"]),
        "fortran_order": False,
        "shape": shape,
    }
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, header)  # type: ignore[arg-type]
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as goal,
    ):
        for member in source.namelist():
            goal.writestr(member, content.getvalue() if member == f"{name}.npy" else source.read(member))
    return stream.getvalue()


def checkpoint_changed(draw: random.Random, data: bytes) -> bytes:
    """A torch file with another field, tensor or number, packed, or with changed bytes."""
    kind = draw.randrange(5)
    if kind == 0:
        return bytes_changed(draw, data)
    if kind == 1:
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w") as goal:
            packed = draw.choice(source.namelist())
            for member in source.namelist():
                method = zipfile.ZIP_DEFLATED if member == packed else zipfile.ZIP_STORED
                content = source.read(member)
                if member == packed:
                    content = draw.choice([content, bytes(50_000_000), bytes_changed(draw, content or b"x")])
                goal.writestr(member, content, method)
        return stream.getvalue()
    tree = torch.load(io.BytesIO(data), weights_only=True)
    node, key = tree, draw.choice(list(tree))
    while isinstance(node[key], dict | list) and node[key] and draw.random() < 0.7:
        node = node[key]
        key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
    old = node[key]
    if isinstance(old, torch.Tensor) and draw.random() < 0.7:
        node[key] = draw.choice(
            [
                old.reshape(-1)[:1],
                old.double(),
                old * float("nan"),
                old.to_sparse() if old.ndim else old[None],
                torch.zeros(1).expand(2**20, 2**10),
                torch.full_like(old, 1e38),
            ]
        )
    elif kind == 2 and isinstance(node, dict):
        del node[key]
    else:
        node[key] = draw.choice([value(draw), old, torch.zeros(3), {1: 2}, (1, 2)])
    stream = io.BytesIO()
    torch.save(tree, stream, _use_new_zipfile_serialization=draw.random() < 0.95)
    return stream.getvalue()


@contextlib.contextmanager
def lenient_writing() -> Iterator[None]:
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


def _elements_changed(draw: random.Random, raw: bytes) -> bytes:
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
            many = draw.choice([1, 1, 1, 300])
            element.value = (
                [*element.value, *[item] * many] if draw.random() < 0.5 else list(element.value)[1:]
            )
        elif action == "digits" and element.VR in ("DS", "IS"):
            values = list(element.value) if element.VM > 1 else [element.value]
            values[draw.randrange(len(values))] = draw.choice([0, 1, -1, 7, 1e4, -1e9])
            holder[element.tag] = DataElement(element.tag, "DS", values)
        else:
            vr = (
                element.VR
                if action == "value" and element.VR in _ELEMENTS
                else draw.choice(sorted(_ELEMENTS))
            )
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                holder[element.tag] = DataElement(element.tag, vr, draw.choice(_ELEMENTS[vr]))
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def nested(depth: int) -> bytes:
    """A Content Sequence within a Content Sequence, and so on, in explicit little-endian bytes."""
    begin = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return begin * depth + end * depth


def _dicom_bytes_changed(draw: random.Random, raw: bytes) -> bytes:
    """Truncate, overwrite, insert, or cut out bytes anywhere in the file, or nest sequences deeply."""
    data = bytearray(raw)
    action = draw.choice(["truncate", "flip", "flip", "insert", "cut", "lengths", "nest"])
    at = draw.randrange(len(data))
    if action == "truncate":
        return bytes(data[:at])
    if action == "nest":
        return raw + nested(draw.choice([20, 400, 5_000]))
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


def dicom_changed(draw: random.Random, raw: bytes) -> bytes:
    """A DICOM file with changed elements, or changed bytes where pydicom cannot write them."""
    if draw.random() < 0.6:
        try:
            with lenient_writing():
                return _elements_changed(draw, raw)
        except Exception:  # some values cannot be written by pydicom at all: mutate the bytes instead
            return _dicom_bytes_changed(draw, raw)
    return _dicom_bytes_changed(draw, raw)
