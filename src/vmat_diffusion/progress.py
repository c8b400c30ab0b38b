"""How far a piece of work is, and how long each of its stages takes."""

from __future__ import annotations

import signal
import threading
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


@contextmanager
def ctrl_c_noted() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed within: it is noted instead of raised, so that work can end in good order.

    A second Ctrl-C is raised at once. Only the main thread hears of either.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, _: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


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
