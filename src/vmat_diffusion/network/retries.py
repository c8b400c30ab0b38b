"""Trying again what may be well in a while, after longer and longer waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from sqlite3 import OperationalError
from typing import TypeVar

from vmat_diffusion.errors import InputError, LimitError, UnreadableError, limit_of

_T = TypeVar("_T")
_FIRST_S, _LONGEST_S = 1.0, 60.0


class TransientError(InputError):
    """What may be well in a while: no answer, no room, a connection that broke."""


def may_pass(error: BaseException) -> bool:
    """Whether a fault may be well in a while: a peer, a disk, a database, no object or defect."""
    kinds = (TransientError, UnreadableError, LimitError, OperationalError, OSError)
    return isinstance(error, kinds) or bool(limit_of(error))


def wait_s(tries: int, longest_s: float = _LONGEST_S) -> float:
    """How long to wait after so many tries: 1, 2, 4 s and so on."""
    return min(_FIRST_S * 2.0 ** min(tries - 1, 30), longest_s)


def tried(
    action: Callable[[], _T],
    tries: int,
    *,
    sleep: Callable[[float], None] = time.sleep,
    note: Callable[[str], None] = lambda _: None,
) -> _T:
    """What an action returns, tried again where it raises TransientError; that of the last try goes on."""
    for number in range(1, tries):
        try:
            return action()
        except TransientError as fault:
            note(f"{fault}; again in {wait_s(number):g} s")
            sleep(wait_s(number))
    return action()
