"""What can be wrong with an input, each with a sentence that a physicist can act on.

Every message names the thing, its value, the limit and the remedy; the command line prints it
and ends with exit code 2. Messages never carry a patient's name or record number. `limit_of` finds
in any exception the limits of the computer: disk, memory, open files, rights.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterator
from pathlib import Path
from traceback import extract_tb


class InputError(ValueError):
    """Base of all errors that the user can mend; anything else is a defect of the program."""


class CaseError(InputError):
    """The images, contours or doses cannot be used as they are."""


class UnreadableError(CaseError):
    """A file cannot be read at the moment (disk, network, permissions): worth another try as it is."""


class GoalError(InputError):
    """The goal sheet cannot be read or does not fit the case."""


class MachineError(InputError):
    """The machine is unknown or its file is wrong."""


class PlanError(InputError):
    """The plan cannot be read, represented or written."""


class LimitError(InputError):
    """The disk, the memory or another limit of this computer ended the work; no case is at fault."""


# What the system says, with what to do; the sentence goes on after the name of the file.
_DISK = {
    errno.ENOSPC: "the disk is full; free some space or write to another disk",
    errno.EDQUOT: "the quota of the disk is used up; free some space or write to another disk",
    errno.EFBIG: "the file would be larger than is allowed here; raise the limit (ulimit -f) or use another "
    "disk",
    errno.EROFS: "the disk can only be read; name a folder on another one",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n) or use fewer --workers",
    errno.ENFILE: "too many files are open on this computer; end other programs or use fewer --workers",
}
_MEMORY = (
    "the memory of this computer or its limit (ulimit -v) was too small; end other programs, use fewer "
    "--workers or a coarser grid, or take a computer with more"
)
# Libraries wrap what the system says in exceptions of their own.
_WRAPPED = (
    (re.compile(r"No space left|os error 28\b|inline_container|file write failed"), _DISK[errno.ENOSPC]),
    (re.compile(r"Too many open files|os error 24\b"), _DISK[errno.EMFILE]),
    (re.compile(r"File too large|os error 27\b"), _DISK[errno.EFBIG]),
    (re.compile(r"Read-only file system|os error 30\b"), _DISK[errno.EROFS]),
    (
        re.compile(
            r"(?i)can(no|')t allocate memory|not enough memory|out of memory|unable to allocate|bad_alloc|"
            r"failed to map segment|can't start new thread|cannot allocate write.execute memory"
        ),
        _MEMORY,
    ),
)


def limit_of(error: BaseException) -> str:
    """What limit of the computer lies behind an exception, as a sentence with the remedy; "" for none.

    Looks at the exceptions from which it was raised too, and at what libraries write of the system's errors.
    """
    for one in _chain(error):
        if isinstance(one, LimitError):
            return str(one)
        file = f"{one.filename}: " if isinstance(one, OSError) and one.filename else ""
        if isinstance(one, MemoryError) or (isinstance(one, OSError) and one.errno == errno.ENOMEM):
            return f"{file}{_MEMORY}"
        if isinstance(one, OSError) and one.errno in _DISK:
            return f"{file}{_DISK[one.errno]}"
        if not isinstance(one, InputError):
            for pattern, sentence in _WRAPPED:
                if pattern.search(str(one)):
                    return f"{file}{sentence}"
    return ""


def kind_and_place(error: BaseException) -> str:
    """A sentence for an error whose own message may hold a name: its kind, and where it was raised."""
    if isinstance(error, InputError):
        return str(error)
    last = (extract_tb(error.__traceback__) or [None])[-1]
    where = f" at {Path(last.filename).name}:{last.lineno}" if last else ""
    return limit_of(error) or f"{type(error).__name__}{where}"


def memory_limit_gb() -> float:
    """The most memory that this process may take (ulimit -v); infinite where there is no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return math.inf if soft == resource.RLIM_INFINITY else soft / 1e9


def is_memory(sentence: str) -> bool:
    """Whether `limit_of` speaks of memory, of which one case may need more than another."""
    return sentence.endswith(_MEMORY)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
