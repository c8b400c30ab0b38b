"""How far a piece of work is, and how long each of its stages takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with the name of a stage, the share of it that is done (0 to 1), and a note for the reader.
Progress = Callable[[str, float, str], None]


def silent(stage: str, fraction: float, note: str) -> None:
    """The progress of work that nobody watches."""


def under_name(progress: Progress, stage: str) -> Progress:
    """Progress that is handed on under the name of the caller's stage, whatever the callee calls its own."""
    return lambda _, fraction, note: progress(stage, fraction, note)


class Clock:
    """Times the stages, those that come again in sum, and hands their progress on."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self.report: Progress = progress or silent

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        self.report(name, 0.0, "")
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.report(name, 1.0, "")

    def split(self, name: str, part: str, seconds: float) -> None:
        """Count some of a stage's time as a stage of its own."""
        self.seconds[name] -= seconds
        self.seconds[part] = seconds
