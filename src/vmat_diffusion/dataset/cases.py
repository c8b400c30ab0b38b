"""The training case and its file: one patient on one grid.

The file is a compressed npz that `numpy.load` reads without pickle; the same case makes the same bytes.
Every array, its unit and the history of the schema: `docs/preprocess.md`.
"""

from __future__ import annotations

import json
import lzma
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose, Prescription, Role, Structure
from vmat_diffusion.dataset.schema import check_arrays, check_case, check_sizes
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.evaluate.goals import GoalSheet, evaluate
from vmat_diffusion.files import written_whole
from vmat_diffusion.geometry import Grid, Mask
from vmat_diffusion.plan import Arc, FluenceFields, Plan

SCHEMA = 1
# A dose of uint16 steps; hundredths of a gray up to 655 Gy hold what most systems export.
DOSE_STEP_GY = 0.01
# Compression level: a third of the time of the usual 6, for files 1 % larger.
_ZIP_LEVEL = 3
# Errors of numpy and zipfile for files that are missing, damaged or no npz.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
)
_ARC_ARRAYS = ("gantry_deg", "leaves_mm", "jaws_mm", "mu")
_FLUENCE_ARRAYS = ("gantry_deg", "collimator_deg", "mu", "row_edges_mm", "column_edges_mm")


@dataclass(frozen=True)
class Constraint:
    """A goal of a training case: its text, its limit, and the value that the reference dose achieved.

    `limit` and `achieved` are in the unit of the goal; `achieved` is None without a dose.
    """

    structure: str
    goal: str
    limit: float
    achieved: float | None = None


def constraints_of(sheet: GoalSheet, case: Case) -> tuple[Constraint, ...]:
    """The goals of a sheet that was fitted to the case, with the values that its dose achieved.

    `achieved` is None without a dose, and for an organ that is not contoured.
    """
    if case.reference_dose is None:
        return tuple(Constraint(g.structure, g.statement, g.limit) for g in sheet.goals)
    return tuple(
        Constraint(r.goal.structure, r.goal.statement, r.goal.limit, r.value)
        for r in evaluate(sheet, case, case.reference_dose)
    )


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """A case whose dose, if there is one, lies on the case's own grid.

    Outside `possible_dose`, a mask inside the body, the dose is 0. The dose is that of `plan`, or of `fields`
    of free fluence where no leaves deliver it. `has_ct` is False where the source had no CT and `case.hu`
    replaces it. `padding` counts the voxels of air added before and after along z, y and x.
    `names` is the vocabulary of the data set; a structure of it may be missing because nobody contoured it.
    `provenance` holds versions, UID hashes and the steps taken.
    """

    case: Case
    possible_dose: Mask
    plan: Plan | None = None
    has_ct: bool = True
    constraints: tuple[Constraint, ...] = ()
    names: tuple[str, ...] = ()
    padding: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0), (0, 0))
    provenance: Mapping[str, Any] = field(default_factory=dict)
    fields: FluenceFields | None = None

    def __post_init__(self) -> None:
        dose = self.case.reference_dose
        if dose is not None and not dose.grid.matches(self.case.grid):
            raise CaseError(f"{self.case.id}: the dose of a training case must lie on the grid of its CT")
        if self.possible_dose.shape != self.case.grid.shape:
            raise CaseError(f"{self.case.id}: the possible-dose mask does not fit the grid of the CT")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All names with a presence flag: those of the data set, then the case's own."""
        return tuple(dict.fromkeys([*self.names, *self.case.structures]))


def save_case(path: Path, training: TrainingCase, *, sdf_mm: Mapping[str, NDArray] | None = None) -> Path:
    """Write a training case; the file appears whole or not at all.

    `sdf_mm` holds signed distance maps by structure, kept in steps of 0.1 mm. Doses are kept in steps
    of 0.01 Gy. Raises CaseError for a dose above 655 Gy.
    """
    arrays = _arrays(training)
    if sdf_mm is not None:
        tenths = [
            np.clip(np.rint(np.asarray(sdf_mm[n]) * 10), -32767, 32767) for n in training.case.structures
        ]
        arrays["sdf_tenth_mm"] = np.stack(tenths).astype(np.int16)
    with written_whole(path) as part, part.open("wb") as stream:
        _write_npz(stream, arrays)
    return path


def load_case(path: Path) -> TrainingCase:
    """Read a file of `save_case`.

    Raises CaseError for a file that is damaged, is no training case or is of a newer schema.
    """
    return case_from_arrays(read_arrays(path), path.name)


def read_arrays(path: Path, *, only: Sequence[str] | None = None) -> dict[str, NDArray]:
    """The arrays of a training case by their names in the file, distance maps only if they are named.

    For the errors see `load_case`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        names = [n for n in dict.fromkeys(held) if (n != "sdf_tenth_mm" if only is None else n in only)]
        check_sizes(path, names)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    except CaseError:
        raise
    except UNREADABLE as fault:
        raise CaseError(f"{path.name} is no readable npz file ({fault}); make it again") from None
    if "schema" not in arrays or "meta" not in arrays:
        raise CaseError(
            f"{path.name} is no training case (it has no schema); make one with `vmat-diffusion preprocess`, "
            "or with `vmat-diffusion import openkbp` from a patient of that challenge"
        )
    schema = arrays["schema"]
    if schema.dtype.kind != "i" or schema.ndim or int(schema) != SCHEMA:
        shown = int(schema) if schema.dtype.kind == "i" and not schema.ndim else "of another kind"
        raise CaseError(f"{path.name} has schema {shown}, this version reads {SCHEMA}; convert it")
    check_arrays(arrays, path.name)
    return arrays


def case_from_arrays(arrays: Mapping[str, NDArray], label: str = "the training case") -> TrainingCase:
    """The training case of the arrays of `read_arrays`; `label` names it in errors.

    Raises CaseError where the arrays do not fit together.
    """
    meta = check_case(arrays, label)
    try:
        return _built(meta, arrays)
    except InputError as fault:
        raise CaseError(f"{label}: {fault}") from None


def _built(meta: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> TrainingCase:
    shape = arrays["hu"].shape
    grid = Grid(shape, _triple(arrays["spacing_mm"]), _triple(arrays["origin_mm"]))
    structures = {
        str(name): Structure(str(name), _role(role), _unpacked(row, shape))
        for name, role, row in zip(arrays["mask_names"], arrays["mask_roles"], arrays["masks"], strict=True)
    }
    dose = None
    if "dose" in arrays:
        gy = (arrays["dose"] * float(arrays["dose_step_gy"])).astype(np.float32)
        dose = Dose(grid, gy, medium=meta["dose_medium"])
    prescribed = meta["prescription"]
    case = Case(
        id=meta["id"],
        site=meta["site"],
        grid=grid,
        hu=arrays["hu"],
        structures=structures,
        prescription=Prescription(**prescribed) if prescribed else None,
        patient_position=meta["patient_position"],
        reference_dose=dose,
    )
    return TrainingCase(
        case=case,
        possible_dose=_unpacked(arrays["possible_dose"], shape),
        plan=_plan(meta["plan"], arrays),
        fields=_fields(arrays),
        has_ct=meta["has_ct"],
        constraints=_constraints(meta["constraints"], arrays),
        names=tuple(str(n) for n in arrays["vocabulary"]),
        padding=tuple((int(a), int(b)) for a, b in arrays["padding"]),  # type: ignore[arg-type]
        provenance=meta["provenance"],
    )


def _write_npz(stream: IO[bytes], arrays: Mapping[str, Any]) -> None:
    """Write what `numpy.savez_compressed` writes, at another compression level."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=_ZIP_LEVEL) as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)


def _arrays(training: TrainingCase) -> dict[str, Any]:
    """The arrays of the file, by their names in it."""
    case, grid = training.case, training.case.grid
    affine = np.diag([*grid.spacing_mm, 1.0])
    affine[:3, 3] = grid.origin_mm
    present = np.array([name in case.structures for name in training.vocabulary], bool)
    masks = [np.packbits(s.mask.ravel()) for s in case.structures.values()]
    arrays: dict[str, Any] = {
        "schema": np.int64(SCHEMA),
        "hu": case.hu.astype(np.int16),
        "spacing_mm": np.array(grid.spacing_mm),
        "origin_mm": np.array(grid.origin_mm),
        "affine": affine,
        "masks": np.stack(masks),
        "mask_names": np.array(list(case.structures)),
        "mask_roles": np.array([s.role for s in case.structures.values()]),
        "vocabulary": np.array(training.vocabulary),
        "present": present,
        "possible_dose": np.packbits(training.possible_dose.ravel()),
        "padding": np.array(training.padding, np.int64),
        "constraint_limits": np.array([c.limit for c in training.constraints], float),
        "constraint_achieved": np.array(
            [np.nan if c.achieved is None else c.achieved for c in training.constraints], float
        ),
        "meta": np.array(json.dumps(_meta(training), sort_keys=True)),
    }
    if case.prescription is not None:
        levels = case.prescription.target_gy
        arrays["prescription_gy"] = np.array([levels.get(name, np.nan) for name in case.structures], float)
    if case.reference_dose is not None:
        arrays["dose_step_gy"] = np.float64(DOSE_STEP_GY)
        arrays["dose"] = _quantised(case.reference_dose.gy, case.id)
    for k, arc in enumerate(training.plan.arcs if training.plan else (), start=1):
        arrays |= {f"arc{k}_{name}": getattr(arc, name) for name in _ARC_ARRAYS}
    if training.fields is not None:
        arrays |= {f"fluence_{name}": getattr(training.fields, name) for name in _FLUENCE_ARRAYS}
        arrays["fluence_isocenter_mm"] = np.array(training.fields.isocenter_mm, float)
        arrays["fluence_fractions"] = np.int64(training.fields.fractions)
    return arrays


def _quantised(gy: NDArray, label: str) -> NDArray[np.uint16]:
    steps = np.rint(np.asarray(gy, np.float64) / DOSE_STEP_GY)
    if steps.min() < 0 or steps.max() > np.iinfo(np.uint16).max:
        raise CaseError(
            f"{label}: doses of {gy.min():g} to {gy.max():g} Gy are outside 0 to 655 Gy; check the RTDOSE"
        )
    return steps.astype(np.uint16)


def _meta(training: TrainingCase) -> dict[str, Any]:
    """The metadata. Names as written in the source are left out: they may contain a patient's name."""
    case, plan = training.case, training.plan
    beams = [
        {"collimator_deg": a.collimator_deg, "couch_deg": a.couch_deg, "name": a.name, "number": a.number}
        for a in (plan.arcs if plan else ())
    ]
    return {
        "id": case.id,
        "site": case.site,
        "patient_position": case.patient_position,
        "has_ct": training.has_ct,
        "prescription": None if case.prescription is None else _plain(asdict(case.prescription)),
        "dose_medium": case.reference_dose.medium if case.reference_dose else None,
        "constraints": [[c.structure, c.goal] for c in training.constraints],
        "plan": None
        if plan is None
        else {
            "isocenter_mm": list(plan.isocenter_mm),
            "fractions": plan.fractions,
            "machine": plan.machine,
            "label": plan.label,
            "patient_position": plan.patient_position,
            "dose_rate_mu_min": plan.dose_rate_mu_min,
            "beams": beams,
        },
        "provenance": _plain(training.provenance),
    }


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else list(v)))


def _constraints(goals: Sequence[Sequence[str]], arrays: Mapping[str, NDArray]) -> tuple[Constraint, ...]:
    limits, achieved = arrays["constraint_limits"], arrays["constraint_achieved"]
    return tuple(
        Constraint(structure, goal, float(limit), None if np.isnan(value) else float(value))
        for (structure, goal), limit, value in zip(goals, limits, achieved, strict=True)
    )


def _plan(record: Mapping[str, Any] | None, arrays: Mapping[str, NDArray]) -> Plan | None:
    if record is None:
        return None
    arcs = []
    for k, beam in enumerate(record["beams"], start=1):
        per_point: dict[str, Any] = {name: arrays[f"arc{k}_{name}"] for name in _ARC_ARRAYS}
        arcs.append(Arc(**per_point, **beam))
    rest = {key: value for key, value in record.items() if key != "beams"}
    return Plan(arcs=tuple(arcs), **{**rest, "isocenter_mm": tuple(record["isocenter_mm"])})


def _fields(arrays: Mapping[str, NDArray]) -> FluenceFields | None:
    if "fluence_mu" not in arrays:
        return None
    return FluenceFields(
        **{name: arrays[f"fluence_{name}"] for name in _FLUENCE_ARRAYS},
        isocenter_mm=_triple(arrays["fluence_isocenter_mm"]),
        fractions=int(arrays["fluence_fractions"]),
    )


def _triple(values: Sequence[float] | NDArray) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _role(text: NDArray) -> Role:
    return str(text)  # type: ignore[return-value]


def _unpacked(row: NDArray[np.uint8], shape: Sequence[int]) -> Mask:
    return np.unpackbits(row, count=int(np.prod(shape))).reshape(shape).astype(bool)
