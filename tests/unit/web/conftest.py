"""Passwords cost milliseconds in these tests; one test looks at what they cost in truth."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher

from vmat_diffusion.web import accounts

_REAL = accounts._hasher


@pytest.fixture(scope="session", autouse=True)
def _cheap_passwords() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "_hasher", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        patch.setattr(accounts, "_NOBODY", "")
        yield


@pytest.fixture
def real_hasher() -> PasswordHasher:
    """The hasher of the program."""
    return _REAL
