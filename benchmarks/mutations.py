"""Harm files at random and read them: each gives a result or a sentence, quickly and in little memory.

    python benchmarks/mutations.py [--dicom 10000] [--arrays 2000] [--texts 2000] [--seed 0]

The kinds of files and the ways to harm them are those of tests/harmed_files.py and tests/mutants.py. Chunks
of files run in processes of their own, each file within 20 s of processor time and 2 GB more than the program
has loaded. The exit code is 1 if any file led to a traceback, took longer or needed more.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures import keep_row, load

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]
NUMBERS = {"dicom": 10_000, "arrays": 2_000, "texts": 2_000}
GB_MAX = 2.0
_CHUNK = 250


def chunk(group: str, first: int, count: int) -> dict[str, Any]:
    """What became of the files with these numbers."""
    from harmed_files import GROUPS, TooSlow, drawn, outcome

    _limit_memory()
    tally: Counter[str] = Counter()
    defects, slowest = [], 0.0
    with tempfile.TemporaryDirectory(prefix="vmat-mutations-") as folder:
        kinds = GROUPS[group](Path(folder))
        for number in range(first, first + count):
            kind, started = drawn(kinds, number), time.process_time()
            try:
                tally[f"{kind.name}: {outcome(kind, number)}"] += 1
            except (Exception, TooSlow) as fault:
                tally[f"{kind.name}: defect"] += 1
                place = traceback.extract_tb(fault.__traceback__)[-1]
                defects.append(f"{kind.name} {number}: {type(fault).__name__} at {place.name}: {fault}"[:300])
            slowest = max(slowest, time.process_time() - started)
    return {"tally": tally, "defects": defects, "slowest_s": slowest, "peak_gb": _status_gb("VmHWM")}


def _limit_memory() -> None:
    """At most GB_MAX more of addresses than are taken already."""
    most = int((_status_gb("VmSize") + GB_MAX) * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _status_gb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e9
    return 0.0


def measure(group: str, count: int, first: int) -> Iterator[dict[str, Any]]:
    """What became of the files of a group so far, chunk by chunk."""
    found: dict[str, Any] = {"tally": {}, "defects": [], "slowest_s": 0.0, "peak_gb": 0.0}
    for start in range(first, first + count, _CHUNK):
        size = min(_CHUNK, first + count - start)
        done = subprocess.run(
            [sys.executable, __file__, "--chunk", group, str(start), str(size)],
            capture_output=True,
            text=True,
        )
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            last = done.stderr.strip().splitlines()[-1:]
            found["defects"].append(f"{group} {start} to {start + size}: exit code {done.returncode}, {last}")
            yield found
            continue
        part = json.loads(lines[-1])
        found["tally"] = dict(Counter(found["tally"]) + Counter(part["tally"]))
        found["defects"] += part["defects"]
        for key in ("slowest_s", "peak_gb"):
            found[key] = round(max(found[key], part[key]), 2)
        print(f"{group}: {start + size - first} of {count}, {len(found['defects'])} defects", flush=True)
        yield found


def section() -> Iterator[str]:
    """The section of the page."""
    kept = load("mutations")
    if not kept:
        return
    yield ""
    yield "## Harmed files"
    yield ""
    yield f"`python benchmarks/mutations.py`, {kept['date']}. Files changed at random and read"
    yield "again: a result, or one sentence. Kinds and seeds: `tests/harmed_files.py`. The peak of memory is"
    yield "that of the whole process, libraries included."
    yield ""
    yield "| files | number | read | refused | tracebacks, too slow, too large | slowest, CPU s | peak, GB |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for group, row in kept["groups"].items():
        ends = Counter[str]()
        for name, number in row["tally"].items():
            ends[name.rpartition(": ")[2]] += number
        cells = [sum(ends.values()), ends["read"], ends["refused"], len(row["defects"])]
        cells += [row["slowest_s"], row["peak_gb"]]
        yield f"| {group} | {' | '.join(map(str, cells))} |"
    if remark := kept.get("remark"):
        yield ""
        yield remark


def main() -> None:
    """Measure, and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for group, number in NUMBERS.items():
        parser.add_argument(f"--{group}", type=int, default=number)
    parser.add_argument("--seed", type=int, default=0, help="number of the first file")
    parser.add_argument("--chunk", nargs=3, metavar=("GROUP", "FIRST", "COUNT"))
    given = parser.parse_args()
    if given.chunk:
        group, first, count = given.chunk
        print(json.dumps(chunk(group, int(first), int(count))))
        return
    broken = False
    for group in NUMBERS:
        if count := getattr(given, group):
            for found in measure(group, count, given.seed):  # kept at once: a stopped run has its part
                keep_row("mutations", "groups", group, found)
            broken = broken or bool(found["defects"]) or found["peak_gb"] > GB_MAX
            print("\n".join(found["defects"]), flush=True)
    sys.exit(int(broken))


if __name__ == "__main__":
    main()
