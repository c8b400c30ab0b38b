"""How long each stage of a run takes, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float, str], None]


class Clock:
    """Times the stages, those that come again in sum, and hands their progress on."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self.report: Progress = progress or (lambda stage, fraction, note: None)

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
