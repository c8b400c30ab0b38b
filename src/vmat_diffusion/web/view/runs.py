"""A planning run opened to look at: its record, plan and doses on the case they were made for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Dose
from vmat_diffusion.errors import CaseError, InputError, PlanError
from vmat_diffusion.geometry import PATIENT_POSITIONS, Grid
from vmat_diffusion.machine import Machine, load_machine, machine_names
from vmat_diffusion.origin import compare, dose_origin, plan_origin, uid_code
from vmat_diffusion.plan import Plan
from vmat_diffusion.web.view.cases import CaseStore, Images
from vmat_diffusion.web.view.masks import PackedStructure
from vmat_diffusion.web.view.planes import hottest_mm, step_gy
from vmat_diffusion.workflow.planning.run_files import (
    CHECK_DOSE,
    DOSE_FILE,
    FLUENCE,
    PLAN_FILE,
    RECORD,
    read_check_dose,
    read_delivery,
)
from vmat_diffusion.workflow.planning.stored_record import read_record

_Read = TypeVar("_Read")

# Doses of open runs in memory, bytes: those of about eight runs on voxels of 3 mm. Others are read again.
_DOSES_MOST = 256_000_000
PLANNED, INDEPENDENT, NOISE = "planned", "independent", "independent_error"
TITLES = {
    PLANNED: "Planned dose",
    INDEPENDENT: "Independent dose",
    NOISE: "Standard error of the independent dose",
}


@dataclass(frozen=True, eq=False)
class Shown:
    """A volume that can be shown over the CT, in Gy, and the step in which its planes are sent."""

    name: str
    grid: Grid
    gy: NDArray[np.float32]
    step_gy: float
    hottest_mm: tuple[float, float, float]
    engine: str

    def facts(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "title": TITLES[self.name],
            "engine": self.engine,
            "step_gy": self.step_gy,
            "max_gy": float(self.gy.max()),
            "hottest_mm": self.hottest_mm,
            "spacing_mm": self.grid.spacing_mm,
        }


@dataclass(frozen=True, eq=False)
class Run:
    """One planning run. `plan` is None where the files hold none, `machine` where it is not a shipped one.

    `dose` and `check` are the planned dose and that of the independent engine, the latter with its standard
    error where it is known; `times_s` are those of the segments of arcs by their numbers, as stored.
    `remarks` says what could not be read and what the files leave unsaid of belonging together.
    """

    key: tuple[str, int]
    folder: Path
    record: Mapping[str, Any]  # the fields of a `StoredRecord`
    images: Images
    case_folder: Path
    dose: Dose
    check: Dose | None
    volumes: Mapping[str, Shown]
    plan: Plan | None
    machine: Machine | None
    times_s: Mapping[int, NDArray]
    remarks: tuple[str, ...]

    @property
    def reference_gy(self) -> float:
        """What isodose percentages refer to: the highest prescription, or else the maximum dose."""
        levels = self.record["prescription_gy"].values()
        return float(max(levels, default=max(float(self.dose.gy.max()), 1e-6)))

    def facts(self) -> dict[str, Any]:
        """What the page needs first, as plain data."""
        grid, record = self.images.grid, self.record
        return {
            "case": self.images.key,
            "series": uid_code(self.images.series_uid),
            "grid": {"shape": grid.shape, "spacing_mm": grid.spacing_mm, "origin_mm": grid.origin_mm},
            "position": self.images.origin.position,
            "volumes": [shown.facts() for shown in self.volumes.values()],
            "reference_gy": self.reference_gy,
            "prescription_gy": record["prescription_gy"],
            "fractions": record["fractions"],
            "isocenter_mm": self.plan.isocenter_mm if self.plan else None,
            "sheet": record["sheet"]["title"],
            "outcome": record["verdict"]["outcome"],
            "released": (self.folder / PLAN_FILE).is_file(),
            "mu": record["mu"],
            "created": record["created"],
            "training": record["training"],
            "remarks": list(self.remarks),
            "steps": list(self.images.steps),
        }


class Runs:
    """Open runs: those looked at last stay in memory, as many as their doses may take. Safe for threads."""

    def __init__(self, store: CaseStore, *, most_bytes: int = _DOSES_MOST) -> None:
        self.store = store
        self._most = most_bytes
        self._open: OrderedDict[tuple[str, int], Run] = OrderedDict()
        self._structures: OrderedDict[str, tuple[PackedStructure, ...]] = OrderedDict()
        self._opening: dict[tuple[str, int], tuple[threading.Lock, int]] = {}
        self._lock = threading.Lock()

    def open(self, folder: Path, case_folder: Path) -> Run:
        """The run in a folder. Raises CaseError or PlanError where its files cannot be shown together."""
        if not (folder / RECORD).is_file():
            raise PlanError(f"the run's folder holds no {RECORD}; plan the case again")
        key = _key_of(folder)
        # A lock for each run: who opens a large one does not hold up those who look at others.
        with self._alone(key):
            run = self._kept(key)
            if run is None:
                run = open_run(folder, case_folder, self.store)
                self._keep(key, run)
        return run

    @contextmanager
    def _alone(self, key: tuple[str, int]) -> Iterator[None]:
        """Hold the lock of a run, which is there as long as somebody holds it or waits for it."""
        with self._lock:
            lock, users = self._opening.get(key, (threading.Lock(), 0))
            self._opening[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                users = self._opening[key][1]
                if users == 1:
                    del self._opening[key]
                else:
                    self._opening[key] = (lock, users - 1)

    def _kept(self, key: tuple[str, int]) -> Run | None:
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
            return self._open.get(key)

    def _keep(self, key: tuple[str, int], run: Run) -> None:
        with self._lock:
            self._open[key] = run
            while len(self._open) > 1 and sum(_bytes(r) for r in self._open.values()) > self._most:
                self._open.popitem(last=False)

    def structures(self, run: Run) -> tuple[PackedStructure, ...]:
        """The structures of a run's case, made where they are not there yet."""
        key = run.images.key
        with self._lock:
            if key in self._structures:
                self._structures.move_to_end(key)
                return self._structures[key]
        found = self.store.structures(run.case_folder)
        with self._lock:
            self._structures[key] = found
            while len(self._structures) > 1 and _masks_bytes(self._structures.values()) > _MASKS_MOST:
                self._structures.popitem(last=False)
        return found


# Packed masks of open cases, bytes: 5 to 20 MB a case.
_MASKS_MOST = 128_000_000


def _masks_bytes(cases: Iterable[tuple[PackedStructure, ...]]) -> int:
    return sum(structure.bits.nbytes for structures in cases for structure in structures)


def _bytes(run: Run) -> int:
    return sum(shown.gy.nbytes for shown in run.volumes.values())


def open_run(folder: Path, case_folder: Path, store: CaseStore) -> Run:
    """Read a run's files and hold them against each other; see `Runs.open`.

    What of the record, the independent dose or the delivery cannot be read is named in a remark.
    """
    from vmat_diffusion.dicom import read_dose

    stored = read_record(folder)
    record, unread = stored.fields, [stored.remark] if stored.remark else []
    if not (folder / DOSE_FILE).is_file():
        raise PlanError(f"the run's folder holds no {DOSE_FILE}; plan the case again")
    images = store.images(case_folder)
    _require_same_case(record, images)
    dose = read_dose(folder / DOSE_FILE)
    check = _or_remark(lambda: read_check_dose(folder / CHECK_DOSE), unread)
    plan, times_s = _plan(folder, record, unread)
    origins = [images.origin, dose_origin(dose, "planned dose")]
    if plan is not None and (of_plan := plan_origin(plan.provenance, plan.patient_position)) is not None:
        origins.insert(1, of_plan)
    remarks = (*unread, *compare(*origins).require())
    volumes = {PLANNED: _shown(PLANNED, dose, record["dose"]["engine"])}
    if check is not None:
        volumes[INDEPENDENT] = _shown(INDEPENDENT, check, record["check"]["engine"])
        if check.std_gy is not None:
            noise = Dose(check.grid, check.std_gy)
            volumes[NOISE] = _shown(NOISE, noise, volumes[INDEPENDENT].engine)
    return Run(
        key=_key_of(folder),
        folder=folder,
        record=record,
        images=images,
        case_folder=case_folder,
        dose=dose,
        check=check,
        volumes=volumes,
        plan=plan,
        machine=_machine(record, plan),
        times_s=times_s,
        remarks=remarks,
    )


def _key_of(folder: Path) -> tuple[str, int]:
    """A run that is written anew is another one."""
    return str(folder.resolve()), (folder / RECORD).stat().st_mtime_ns


def _or_remark(read: Callable[[], _Read], unread: list[str]) -> _Read | None:
    """What `read` gives; where it refuses a file, None, and its sentence among what is unread."""
    try:
        return read()
    except InputError as fault:
        unread.append(str(fault))
        return None


def _shown(name: str, dose: Dose, engine: str | None) -> Shown:
    said = (engine or "").replace("_", " ")
    return Shown(name, dose.grid, dose.gy, step_gy(dose.gy), hottest_mm(dose), said)


def _require_same_case(record: Mapping[str, Any], images: Images) -> None:
    """Refuse a case other than the one that was planned, by the codes of its UIDs."""
    codes = record["inputs"]["uid_hashes"]
    found = {
        "series": images.series_uid,
        "structure_set": images.origin.structure_set,
        "frame_of_reference": images.origin.frame,
    }
    for what, uid in found.items():
        if codes.get(what) and codes[what] != uid_code(uid):
            raise CaseError(
                f"the case's folder holds another {what.replace('_', ' ')} than the plan was made on; "
                "restore the files that were planned"
            )


def _machine(record: Mapping[str, Any], plan: Plan | None) -> Machine | None:
    """The machine that the record names; None for one that is not shipped or whose leaves are others."""
    name = record["settings"]["machine"]
    machine = load_machine(name) if name in machine_names() else None
    if machine is None or plan is None:
        return machine
    pairs = sum(layer.pairs for layer in machine.mlc.layers)
    return machine if all(arc.leaves_mm.shape[2] == pairs for arc in plan.arcs) else None


def _plan(
    folder: Path, record: Mapping[str, Any], unread: list[str]
) -> tuple[Plan | None, Mapping[int, NDArray]]:
    """The plan as its file holds it, or, where the gate held it back, as the run's arrays do.

    Beside it the times of the segments that the run stored, s, by the numbers of the arcs.
    """
    stored = _or_remark(lambda: read_delivery(folder / FLUENCE), unread)
    times_s: Mapping[int, NDArray] = stored.time_s if stored else {}
    if (folder / PLAN_FILE).is_file():
        from vmat_diffusion.dicom import read_plan

        return read_plan(folder / PLAN_FILE), times_s
    if stored is None:
        return None, {}
    position = record["inputs"]["patient_position"]
    known = position if position in PATIENT_POSITIONS else "HFS"
    fractions = record["fractions"] or 1
    return Plan(stored.arcs, stored.isocenter_mm, fractions, "", patient_position=known), times_s
