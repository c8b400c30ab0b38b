"""One piece of a benchmark that may fail: the benchmark goes on and names the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vmat_diffusion.dataset.tables import Rejection, rejection
from vmat_diffusion.errors import InputError, LimitError, limit_of
from vmat_diffusion.jobs.batch import unexpected

Made = TypeVar("Made")


def attempted(name: str, make: Callable[[], Made]) -> Made | Rejection:
    """What `make` returns, or why it failed, under `name`.

    Raises LimitError where memory or disk is at its limit: the next piece would meet it too.
    """
    try:
        return make()
    except LimitError:
        raise
    except InputError as error:
        return rejection(name, str(error))
    except Exception as error:
        if limit := limit_of(error):
            raise LimitError(f"{limit}. What is done is kept") from error
        return rejection(name, unexpected(name, error))
