"""Files that appear whole or not at all, TOML and JSON, the hash of a file, and who writes a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import sys
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FIRST_PRINTABLE = 32
_PART = re.compile(r"\..+\.([0-9a-f]{8})-(\d{1,10})-[0-9a-f]{8}\.part")
_NAME_BYTES_MAX = 255  # of a name on every common file system
# Larger whole numbers fit no array; Python itself would read millions of digits in minutes.
_WHOLE_MAX, _DIGITS_MAX = 2**63 - 1, 40
# What `fsync` says of a disk that did not take the contents; other answers mean that it cannot flush.
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def why_no_file(path: Path) -> str:
    """Why there is no file at `path`: what follows its name in a sentence."""
    return "is a folder" if path.is_dir() else "does not exist"


def why_no_folder(path: Path) -> str:
    """Why there is no folder at `path`: what follows its name in a sentence."""
    return "is a file" if path.is_file() else "does not exist"


@contextmanager
def written_whole(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary name beside `path` to write to; the file is renamed to `path` at the end.

    On any failure it is removed and `path` stays as it was. Raises FileExistsError where `path` exists and
    is not to be overwritten, even where another writer has just made it. An OSError of the system carries
    the name of `path`.
    """
    part = path.with_name(f".{path.name}.{_host()[:8]}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        with system_errors_name(path):
            yield part
            flush_to_disk(part)
            if overwrite:
                part.replace(path)
            else:
                _publish(part, path)
    finally:
        with suppress(OSError):  # a folder that can no longer be written must not hide the first error
            part.unlink(missing_ok=True)


def remove_dead_parts(folder: Path) -> None:
    """Remove what `written_whole` left in a folder and the folders in it when its process was killed.

    Parts of other computers and of living processes stay.
    """
    for part in folder.rglob(".*.part"):
        writer = _PART.fullmatch(part.name)
        if writer is None or writer[1] != _host()[:8]:
            continue
        pid = int(writer[2])
        if is_dead({"pid": pid, "host": _host(), "started": _start_of(pid)}):
            part.unlink(missing_ok=True)


@contextmanager
def system_errors_name(path: Path) -> Iterator[None]:
    """Give an OSError without a file, as a full disk raises it, the name of what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).endswith(".part")):
            error.filename = str(path)
        raise


def flush_to_disk(path: Path) -> None:
    """Wait until the disk has the contents of a file: a full or broken disk may say so only now.

    What cannot be flushed on some file systems counts as written.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in _NOT_WRITTEN:
            raise
    finally:
        os.close(handle)


def _publish(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        part.rename(path)


def is_plain_name(name: object) -> bool:
    """Whether a text is the name of a file in a folder: no path, no parent, no drive."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not any(c in "/\\:" or ord(c) < _FIRST_PRINTABLE for c in name)
        and len(name.encode("utf-8", "surrogatepass")) <= _NAME_BYTES_MAX
    )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shipped_or_code(name: str | None, shipped: Collection[str] = ()) -> str | None:
    """The name of something shipped as it is; what a user's file is called as `file` and its contents' hash.

    Names of files may be those of patients and machines, so records do not hold them. None stays None.
    """
    if not name or name in shipped:
        return name
    try:
        return f"file {sha256_of(Path(name))[:16]}"
    except OSError:
        return "file unknown"


def content_hash(source: Path) -> str:
    """SHA-256 over the contents of a file, or of all files of a folder, whatever their names and order."""
    digests = []
    for file in [source] if source.is_file() else source.rglob("*"):
        if file.is_file():
            digests.append(hashlib.sha256(file.read_bytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def this_process() -> dict[str, str | int]:
    """Who writes: the process, when it began, and the computer as a hash, since names of computers tell."""
    return {"pid": os.getpid(), "started": _start_of(os.getpid()), "host": _host()}


def is_dead(writer: object) -> bool:
    """Whether the process that `this_process` described is known to be over.

    False where that cannot be said: on another computer, and for what is no such record.
    """
    if (
        not isinstance(writer, dict)
        or not isinstance(writer.get("pid"), int)
        or writer.get("host") != _host()
    ):
        return False
    pid = writer["pid"]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is there and another user's, or no number of a process
        pass
    if _state_of(pid) in ("Z", "X"):  # it has ended, and nobody has asked how yet
        return True
    started = _start_of(pid)
    return bool(started) and started != writer.get("started")


def _state_of(pid: int) -> str:
    """The letter that the system has for the state of a process; "" where it does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, ValueError, IndexError):
        return ""


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:16]


def _start_of(pid: int) -> str:
    """When a process began, with the start of the computer; "" where the system does not say."""
    try:
        # The name of the program, in brackets, may hold blanks.
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except (OSError, ValueError, IndexError):
        return ""
    return f"{boot} {ticks}"


def read_json(file: Path) -> object:
    """The content of a JSON file; None where there is none or `parse_json` refuses it."""
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def parse_json(text: str, *, characters: int = 64_000_000, finite: bool = True) -> Any:
    """JSON from a file that anybody may have written.

    Raises ValueError for text that is too long, no JSON, nested too deeply for the reader, or that holds a
    number which is not finite (unless `finite` is false) or too large for any use.
    """
    _refuse_long(text, characters)
    try:
        real = _finite if finite else float
        return json.loads(text, parse_constant=real, parse_float=real, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_toml(text: str, *, characters: int = 4_000_000) -> dict[str, Any]:
    """TOML from a file that anybody may have written; ValueError as from `parse_json`."""
    _refuse_long(text, characters)
    try:
        tree = tomllib.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    waiting: list[tuple[str, Any]] = [("", tree)]
    while waiting:
        key, node = waiting.pop()
        if isinstance(node, dict | list):
            items = node.items() if isinstance(node, dict) else enumerate(node, start=1)
            waiting += [(f"{key}.{name}".lstrip("."), value) for name, value in items]
        elif isinstance(node, int) and abs(node) > _WHOLE_MAX:
            raise ValueError(f"{key} is a whole number beyond those of 64 bits")
        elif isinstance(node, float) and not math.isfinite(node):
            raise ValueError(f"{key} is {node}, which is not finite")
    return tree


def _refuse_long(text: str, characters: int) -> None:
    if len(text) > characters:
        raise ValueError(f"{len(text)} characters, more than {characters}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is not finite")
    return value


def _whole(text: str) -> int:
    if len(text) > _DIGITS_MAX:
        raise ValueError(f"the number {text[:20]} has {len(text)} digits, more than {_DIGITS_MAX}")
    value = int(text)
    if abs(value) > _WHOLE_MAX:
        raise ValueError(f"the number {text} is outside those of 64 bits")
    return value


def write_json(path: Path, record: Mapping[str, Any]) -> Path:
    """Plain data as JSON; numpy values become lists and numbers, and numbers that are not finite null."""
    plain = json.loads(json.dumps(record, default=_plain), parse_constant=lambda _: None)
    path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    import numpy as np

    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
