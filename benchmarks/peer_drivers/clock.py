"""Seconds and memory of one process; imported by every driver, so nothing outside the standard library."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def timed(call: Callable[[], Any], repeats: int = 1) -> tuple[dict[str, float], Any]:
    """Wall and processor seconds (of all threads) of the fastest of some calls, and what it returned."""
    best: dict[str, float] = {}
    result = None
    for _ in range(repeats):
        result = None  # two results at once would double the memory
        wall, used = time.perf_counter(), time.process_time()
        result = call()
        seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - used}
        if not best or seconds["wall_s"] < best["wall_s"]:
            best = seconds
    return best, result


def report(file: str, figures: dict[str, Any]) -> None:
    """Write the figures of this process, with its peak memory, for the process that started it."""
    per_gb = 1e9 if sys.platform == "darwin" else 1e6
    figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_gb
    Path(file).write_text(json.dumps(figures))
