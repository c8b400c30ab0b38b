"""What the limits of a computer are called, however deep a library has wrapped them."""

from __future__ import annotations

import errno
import os

import pytest

from vmat_diffusion.errors import CaseError, InputError, LimitError, is_memory, limit_of


def system(number: int, file: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), file)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (system(errno.ENOSPC, "/data/x.npz"), "/data/x.npz: the disk is full; free some space"),
        (system(errno.EDQUOT), "quota"),
        (system(errno.EFBIG), "ulimit -f"),
        (system(errno.EROFS, "/ro"), "/ro: the disk can only be read"),
        (system(errno.EMFILE), "ulimit -n"),
        (system(errno.ENOMEM), "memory"),
        (MemoryError(), "memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory"),
            "memory",
        ),
        (ImportError("libtorch.so: failed to map segment from shared object"), "memory"),
        (RuntimeError("can't start new thread"), "memory"),
        (RuntimeError("[enforce fail at inline_container.cc:595] . unexpected pos 64 vs 0"), "disk is full"),
        (ValueError("I/O error: No space left on device (os error 28)"), "disk is full"),
        (LimitError("the sentence itself"), "the sentence itself"),
    ],
)
def test_a_limit_has_a_sentence_with_its_remedy(error: BaseException, words: str) -> None:
    wrapped = RuntimeError("something else")
    wrapped.__cause__ = error
    for one in (error, wrapped):
        assert words in limit_of(one)
    assert is_memory(limit_of(error)) == (words == "memory")


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        CaseError("the CT needs more than the memory: unable to allocate"),
        system(errno.EIO),
    ],
)
def test_other_errors_are_no_limits(error: BaseException) -> None:
    assert limit_of(error) == ""
    error.__context__ = error  # must not turn round for ever
    assert limit_of(error) == ""


def test_the_user_can_mend_a_limit() -> None:
    assert issubclass(LimitError, InputError)
