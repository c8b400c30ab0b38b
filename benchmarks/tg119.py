"""Plan the TG-119 cases as `benchmark tg119` does, and keep what it finds for docs/benchmarks.md.

    python benchmarks/tg119.py                      # all five cases
    python benchmarks/tg119.py --only prostate      # measure this one again, keep the other figures
    python benchmarks/tg119.py --keep DIR           # keep the plans, and go on there after a stop

Figures are kept in docs/benchmarks_tg119.json; `plans.py --page` writes the page with them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from computer import stamp

from vmat_diffusion.benchmark.tg119_cases import CASES
from vmat_diffusion.files import written_whole

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "benchmarks_tg119.json"
COMMAND = (sys.executable, "-m", "vmat_diffusion", "benchmark", "tg119", "--json")


def load() -> dict[str, Any]:
    """The figures measured so far, by case."""
    return dict(json.loads(FIGURES.read_text(encoding="utf-8"))) if FIGURES.is_file() else {}


def measure(name: str, keep: Path | None) -> dict[str, Any]:
    """What the command prints of one case, which a process of its own plans."""
    out = ("--out", keep) if keep else ()
    done = subprocess.run(
        [*COMMAND, "--cases", name, *out], check=True, stdout=subprocess.PIPE, encoding="utf-8"
    )
    (found,) = json.loads(done.stdout)["cases"]
    return dict(found)


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about TG-119; none without figures."""
    figures = load()
    if not figures:
        return
    yield ""
    yield "## TG-119"
    yield ""
    yield f"{sum(f['passed'] for f in figures.values())} of {len(figures)} cases passed."
    yield "`python benchmarks/tg119.py` plans them by `vmat-diffusion benchmark tg119`. [TG-119](tg119.md)"
    yield "describes the cases and what passing means. Published figures are recalled. Minutes of wall clock"
    yield "are those of the whole run with its Monte Carlo check; optimise is without it."
    yield ""
    yield "| case | passed | minutes | optimise, s | MU | beam on, s | violations | gate | date |"
    yield "|---|---|---:|---:|---:|---:|---:|---|---|"
    for name, f in figures.items():
        failed = ", ".join(c["name"] for c in f["gate"]["checks"] if not c["passed"])
        optimise = sum(f["seconds"].get(stage, 0) for stage in ("optimise", "dose", "optimise again"))
        yield (
            f"| {name} | {_word(f['passed'])} | {f['minutes']:.1f} | {optimise:.0f} | {f['mu']:.0f} | "
            f"{f['delivery_s']:.0f} | {len(f['violations'])} | {failed or 'passed'} | {f['date']} |"
        )
    yield ""
    yield "| case | structure | goal | Gy | published, Gy | needed, Gy | reached |"
    yield "|---|---|---|---:|---:|---:|---|"
    for name, f in figures.items():
        for g in f["goals"]:
            yield (
                f"| {name} | {g['structure']} | {g['goal']} | {g['value']:.2f} | {g['published_mean']:.2f} ± "
                f"{g['published_sd']:.2f} | {g['needed']:g} | {_word(g['reached'])} |"
            )
    yield ""
    yield f"Measured on {'; '.join(dict.fromkeys(f['machine'] for f in figures.values()))}."


def _word(good: bool) -> str:
    return "yes" if good else "**no**"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="cases to measure")
    parser.add_argument("--keep", type=Path, help="keep the plans in this folder")
    arguments = parser.parse_args()
    figures = load()
    for name in arguments.only or CASES:
        print(f"== {name}", file=sys.stderr, flush=True)
        figures[name] = measure(name, arguments.keep) | stamp()
        ordered = {known: figures[known] for known in CASES if known in figures}
        with written_whole(FIGURES) as part:
            part.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    print("\n".join(section()))


if __name__ == "__main__":
    main()
