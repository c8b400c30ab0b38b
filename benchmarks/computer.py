"""What figures are stamped with: the day, and the computer and versions they hold for."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path


def today() -> str:
    """The date (UTC) as in ISO 8601."""
    return datetime.now(timezone.utc).date().isoformat()


def computer() -> str:
    """Processor, cores, memory and versions."""
    model = platform.processor() or platform.machine()
    memory = ""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB memory"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "numba"))
    return f"{model}, {cores} cores{memory}; Python {platform.python_version()}, {versions}"


def stamp() -> dict[str, str]:
    """Both, as they stand in a file of figures."""
    return {"date": today(), "machine": computer()}
