"""Which check of the gate stops which fault: a table from a folder of faults seeded into a plan that passes.

    python benchmarks/seeded_faults.py BASE SEEDS [--grid-mm 3] [--uncertainty 0.02] [--goals SHEET]
        [--kept DIR] [--only NAME ...]

BASE holds RP.dcm, RD.dcm and phantom/ of the plan. SEEDS holds a folder for each fault, with RP.dcm, RD.dcm
and, where the fault lies in CT or structure set, case/. Without goals the checks stand alone.

The independent dose is that of `qa`. It is computed once for all plans that deliver the same to the same CT,
up to a common factor of the MU, and kept in the folder DIR. What is refused, and faults in the dose file,
come first, as they need no dose of their own. Then every plan gets a dose of a few seconds: what fails with
so noisy a dose fails with a better one. The rest is computed to the end.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion import dicom, report
from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.engines import DoseEngine
from vmat_diffusion.errors import InputError
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa import Check, decision
from vmat_diffusion.workflow import check_plan, recompute, second_check
from vmat_diffusion.workflow.settings import QaSettings

# Seconds of computing, enough for gross faults.
_SHORT_MINUTES = 0.25


class DoseNotKept(Exception):
    """The dose would have to be computed."""


@dataclass(frozen=True)
class KeptDose:
    """An engine whose doses are kept in a folder; without an engine it only takes them from there."""

    engine: DoseEngine | None
    machine: Machine
    folder: Path
    settings: str

    def __call__(self, plan: Plan, case: Case, grid: Grid | None = None, progress: Any = None) -> Dose:
        file = self.folder / f"{key_of(plan, case, f'{self.settings} {self.machine} {grid}')}.npz"
        given_mu = plan.total_mu * plan.fractions
        if file.is_file():
            with np.load(file) as kept:
                scale, place = np.float32(given_mu / float(kept["mu"])), kept["grid"].tolist()
                at = grid or Grid(tuple(int(n) for n in place[0]), tuple(place[1]), tuple(place[2]))  # type: ignore[arg-type]
                facts = {"engine": "monte-carlo", "seconds": float(kept["seconds"])}
                doses = (kept[name] * scale for name in ("gy", "std_gy", "replicates_gy"))
                gy, std_gy, replicates_gy = doses
                return Dose(at, gy, std_gy=std_gy, provenance=facts, replicates_gy=replicates_gy)
        if self.engine is None:
            raise DoseNotKept
        dose = self.engine(plan, case, grid, progress)
        place = np.array([dose.grid.shape, dose.grid.spacing_mm, dose.grid.origin_mm])
        seconds = dose.provenance.get("seconds", 0.0)
        doses = {"gy": dose.gy, "std_gy": dose.std_gy, "replicates_gy": dose.replicates_gy}
        np.savez(file, **doses, mu=given_mu, grid=place, seconds=seconds)
        return dose


def key_of(plan: Plan, case: Case, beside: str) -> str:
    """SHA-256 of what enters a dose but the sum of the MU, to which it is proportional."""
    digest = hashlib.sha256(f"{beside} {case.grid} {case.ct_table} {plan.patient_position}".encode())
    digest.update(case.hu.tobytes() + case.body.mask.tobytes())
    values = [np.array(plan.isocenter_mm)]
    for arc in plan.arcs:
        values += [arc.gantry_deg, arc.leaves_mm, arc.jaws_mm, arc.mu / plan.total_mu * 10.0]
        values.append(np.array([arc.collimator_deg, arc.couch_deg]))
    for value in values:
        digest.update((np.round(value, 5) + 0.0).tobytes())
    return digest.hexdigest()[:24]


_CHANGES: dict[str, tuple[float, dict[str, NDArray[np.float32]]]] = {}


def kept_changes(plan: Plan, case: Case, machine: Machine, grid: Grid) -> dict[str, NDArray[np.float32]]:
    """What `collimation_changes` computes, once for plans that deliver the same."""
    key, given_mu = key_of(plan, case, f"{machine} {grid}"), plan.total_mu * plan.fractions
    if key not in _CHANGES:
        _CHANGES[key] = given_mu, _COLLIMATION(plan, case, machine, grid)
    mu, changes = _CHANGES[key]
    return {name: gy * np.float32(given_mu / mu) for name, gy in changes.items()}


_ENGINE: Callable[..., DoseEngine] = recompute.dose_engine
_COLLIMATION = decision.collimation_changes
decision.collimation_changes = kept_changes
# What the table does not need, and what it would read a hundred times.
report.write_report = lambda *_, **__: None
dicom.read_case = cache(dicom.read_case)


@dataclass(frozen=True)
class Settings:
    """How every seed is judged."""

    base: Path
    kept: Path
    uncertainty: float
    grid_mm: float
    goals: str | None


def caught_by(seed: Path, settings: Settings, stage: str) -> tuple[str, str]:
    """The verdict of `qa` on one seed, or REFUSED, and what stopped it, the warnings in brackets.

    `stage` is kept, short or whole: which independent doses are computed. Raises DoseNotKept for one that
    would have to be.
    """
    case = seed / "case" if (seed / "case").is_dir() else settings.base / "phantom"
    minutes = _SHORT_MINUTES if stage == "short" else None
    told = f"{settings.uncertainty} {settings.grid_mm} {minutes or ''}".strip()

    def engine(name: str, machine: Machine, **given: Any) -> DoseEngine:
        inner = _ENGINE(name, machine, **given)
        if name != "monte-carlo":
            return inner
        return KeptDose(None if stage == "kept" else inner, machine, settings.kept, told)

    recompute.dose_engine = engine
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = second_check(
                seed / "RP.dcm",
                case,
                Path(folder) / "qa",
                QaSettings(
                    uncertainty=settings.uncertainty,
                    grid_mm=settings.grid_mm,
                    check_minutes=minutes,
                    goals=settings.goals,
                ),
                dose_file=seed / "RD.dcm",
            )
        except InputError as error:
            return "REFUSED", str(error).removeprefix("RP.dcm: ").split(";")[0]
    # The grid is chosen for the table; whether it is fine enough for a plan says nothing of a fault.
    checks = [c for c in done.verdict.checks if c.name != "dose grid"]
    failed = [c for c in checks if c.fails]
    undecided = [c for c in checks if c.undecided]
    verdict = "FAILED" if failed else "INCONCLUSIVE" if undecided else "PASSED"
    warned = [f"warns: {c.name}: {c.why}" for c in checks if c.warns and not failed]
    return verdict, "; ".join([", ".join(map(_short, failed or undecided)), *warned]).strip("; ")


_NAMES = {
    "gamma 3 %/3 mm": "gamma 3/3",
    "gamma 3 %/2 mm": "gamma 3/2",
    "D95%, D98%, D2% of targets": "targets",
    "D2%, D0.03cc of organs": "organs",
    "mean doses of organs": "organ means",
    "dose of any region": "region",
    "dose of any voxel": "voxel",
    "shift between the doses": "shift",
    "turn between the doses": "turn",
}


def _short(check: Check) -> str:
    """Name and value of a check; counts have no value that matters."""
    name = _NAMES.get(check.name, check.name.replace("mean dose of", "mean of"))
    unit = check.unit.split(" ")[0]
    if check.value is None or unit not in ("%", "mm", "deg"):
        return f"{name} ({check.why.split(';')[0]})" if name == "deliverable" else name
    return f"{name} {check.value:.3g} {unit}"


def said_by_check(plan: Path) -> str:
    """What `check` makes of the plan file alone: refused, the number of violations, warns, or nothing."""
    try:
        found = check_plan(plan, "generic_6mv")
    except InputError:
        return "refused"
    violations = f"{len(found.violations)} violations" if found.violations else ""
    return ", ".join(filter(None, [violations, "warns" if found.warnings else ""]))


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("seeds", type=Path)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--uncertainty", type=float, default=0.02)
    parser.add_argument("--grid-mm", type=float, default=3.0)
    parser.add_argument("--goals", default=None, metavar="SHEET")
    parser.add_argument("--kept", type=Path, default=None, metavar="DIR")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept = given.kept or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        settings = Settings(given.base, kept, given.uncertainty, given.grid_mm, given.goals)
        seeds = [s for s in sorted(given.seeds.iterdir()) if (s / "RP.dcm").is_file()]
        left = [s for s in seeds if not given.only or s.name in given.only]
        left.sort(key=lambda s: s.name != "baseline")
        print("| seed | `qa` | by what | `check` |\n|---|---|---|---|")
        for stage in ("kept", "short", "whole"):
            later = []
            for seed in left:
                try:
                    now = "whole" if seed.name == "baseline" else stage
                    verdict, why = caught_by(seed, settings, now)
                except DoseNotKept:
                    later.append(seed)
                    continue
                if stage == "short" and verdict != "FAILED" and seed.name != "baseline":
                    later.append(seed)
                    continue
                said = said_by_check(seed / "RP.dcm")
                print(f"| {seed.name} | {verdict} | {why} | {said} |", flush=True)
            left = later


if __name__ == "__main__":
    main()
