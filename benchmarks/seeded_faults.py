"""Which check of the gate stops which fault: a table from a folder of faults seeded into a plan that passes.

    python benchmarks/seeded_faults.py BASE SEEDS [--uncertainty 0.024] [--grid-mm 3] [--only NAME ...]

BASE holds RP.dcm, RD.dcm and phantom/ of the plan. SEEDS holds a folder for each fault, with RP.dcm, RD.dcm
and, where the fault lies in CT or structure set, case/. No goals are given: the checks stand alone.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from vmat_diffusion.errors import InputError
from vmat_diffusion.workflow import second_check
from vmat_diffusion.workflow.settings import QaSettings


def caught_by(base: Path, seed: Path, *, uncertainty: float, grid_mm: float) -> tuple[str, str]:
    """The verdict on one seed, or REFUSED, and what stopped it, the warnings in brackets."""
    case = seed / "case" if (seed / "case").is_dir() else base / "phantom"
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = second_check(
                seed / "RP.dcm",
                case,
                Path(folder) / "qa",
                QaSettings(uncertainty=uncertainty, check_minutes=5.0, grid_mm=grid_mm),
                dose_file=seed / "RD.dcm",
            )
        except InputError as error:
            return "REFUSED", str(error)
    verdict = done.verdict
    stopped = [
        c.name if c.value is None else f"{c.name} {c.value:.4g}"
        for c in (*verdict.failed, *verdict.undecided)
    ]
    warned = [f"({c.name})" for c in verdict.checks if c.warns]
    return verdict.outcome.value, ", ".join([*stopped, *warned])


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("seeds", type=Path)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--uncertainty", type=float, default=0.024)
    parser.add_argument("--grid-mm", type=float, default=3.0)
    given = parser.parse_args()
    print("| seed | verdict | caught by |\n|---|---|---|")
    for seed in sorted(given.seeds.iterdir()):
        if (seed / "RP.dcm").is_file() and (not given.only or seed.name in given.only):
            verdict, why = caught_by(given.base, seed, uncertainty=given.uncertainty, grid_mm=given.grid_mm)
            print(f"| {seed.name} | {verdict} | {why} |", flush=True)


if __name__ == "__main__":
    main()
