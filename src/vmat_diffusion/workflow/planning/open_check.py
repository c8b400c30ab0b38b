"""What an inconclusive check leaves in the folder of its run, so that it can go on.

A folder with the plan and dose that were judged, sealed, the tallies of the independent dose, and what was
asked. It stays on the computer it was made on: it names the case's folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.errors import InputError, PlanError
from vmat_diffusion.files import read_json, sha256_of, written_whole
from vmat_diffusion.geometry import Grid
from vmat_diffusion.workflow.planning.request import plan_settings
from vmat_diffusion.workflow.provenance import settings_record
from vmat_diffusion.workflow.settings import PlanSettings

# The gate loads both dose engines: it is imported where a check is read. The review room does without them.
if TYPE_CHECKING:
    from vmat_diffusion.qa import Check

# Plan and dose under judgement: sealed by this suffix, so that no import of a folder takes them for DICOM,
# not even after the process was killed.
UNJUDGED_FILE, UNJUDGED_DOSE = "RP.unjudged", "RD.unjudged"
CHECK_FOLDER = "open_check"
RECORD = "run.json"
_TALLIES, _STATE, _ASKED = "tallies.npz", "state.json", "asked.json"


class Keep(Enum):
    """What stays of a run that did not come to its end.

    The best plan of a search that was interrupted, and what a check needs to go on; the check alone, as in a
    queue, where whoever cancels a plan does not want it; or nothing, as where runs are only counted.
    """

    PLAN_AND_CHECK = "plan and check"
    CHECK = "check"
    NOTHING = "nothing"


@dataclass(frozen=True, eq=False)
class OpenCheck:
    """A check that can go on: its case and settings, the grid and number of the check, and earlier checks."""

    folder: Path
    case_folder: Path
    settings: PlanSettings
    grid: Grid
    correction: int
    earlier: tuple[Check, ...]

    @property
    def plan_file(self) -> Path:
        """The plan that was judged, sealed."""
        return self.folder / UNJUDGED_FILE

    @property
    def dose_file(self) -> Path:
        """Its dose, sealed."""
        return self.folder / UNJUDGED_DOSE


def tallies_of(folder: Path) -> Path:
    """Where the engine leaves what it has for a check in the run's `folder`, which is made."""
    (folder / CHECK_FOLDER).mkdir(exist_ok=True)
    return folder / CHECK_FOLDER / _TALLIES


def keep_open(folder: Path, grid: Grid, correction: int, earlier: Sequence[Check]) -> None:
    """Move the sealed files in `folder` beside the tallies, with what the check stands for."""
    place = folder / CHECK_FOLDER
    for name in (UNJUDGED_FILE, UNJUDGED_DOSE):
        (folder / name).replace(place / name)
    state = {"grid": asdict(grid), "correction": correction, "earlier": [asdict(c) for c in earlier]}
    _write(place / _STATE, state)


def write_asked(folder: Path, case_folder: Path, settings: PlanSettings) -> None:
    """Note what was asked beside a check that is open; nothing where none is."""
    place = folder / CHECK_FOLDER
    if place.is_dir():
        asked = {
            "case": str(case_folder.resolve()),
            "settings": asdict(settings),
            "basis": _basis(settings),
        }
        _write(place / _ASKED, asked)


def _basis(settings: PlanSettings) -> str:
    """A code of all that a plan is judged by: the shipped by name, files of the user by their contents."""
    from vmat_diffusion.qa.limits import gate_limits

    judged_by = {
        name: value
        for name, value in settings_record(settings).items()
        if name not in ("check_minutes", "prior", "improve")
    }
    limits = asdict(gate_limits(settings.gate, settings.uncertainty, settings.robustness))
    text = json.dumps([judged_by, limits], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def tied(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run with the code of the open check beside it; without one where none is open."""
    without = {key: value for key, value in record.items() if key != CHECK_FOLDER}
    place = folder / CHECK_FOLDER
    return {**without, CHECK_FOLDER: _code(place)} if place.is_dir() else without


def _code(place: Path) -> str:
    """A code of what a check judges: plan, dose, and what the check stands for."""
    files = (place / name for name in (UNJUDGED_FILE, UNJUDGED_DOSE, _STATE))
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


def drop(folder: Path) -> None:
    """Remove what a check left in the run's `folder`."""
    shutil.rmtree(folder / CHECK_FOLDER, ignore_errors=True)


def read_open_check(run: Path) -> OpenCheck:
    """The open check in the folder of a run. Raises PlanError where there is none that can go on."""
    from vmat_diffusion.qa.verdict import Check

    place = run / CHECK_FOLDER
    if not place.is_dir():
        raise PlanError(f"{run} holds no check that is open; name the folder of a run that was inconclusive")
    state, asked = (read_json(place / name) for name in (_STATE, _ASKED))
    record = read_json(run / RECORD)
    try:
        is_own = record[CHECK_FOLDER] == _code(place)  # type: ignore[index]
        grid = {key: tuple(value) for key, value in state["grid"].items()}  # type: ignore[index]
        settings = plan_settings(**asked["settings"])  # type: ignore[index]
        same = asked["basis"] == _basis(settings)  # type: ignore[index]
        found = OpenCheck(
            place,
            Path(asked["case"]),  # type: ignore[index]
            settings,
            Grid(**grid),
            int(state["correction"]),  # type: ignore[index]
            tuple(Check(**check) for check in state["earlier"]),  # type: ignore[index]
        )
    except (TypeError, KeyError, ValueError, AttributeError, InputError, OSError):
        raise PlanError(f"the check in {place} is damaged or of another version; plan again") from None
    if not is_own:
        raise PlanError(
            f"the check in {place} is not the one that the run in {run.name} left open; name the folder "
            "that the check was made in, or plan again"
        )
    if not same:
        raise PlanError(
            f"goals, gate limits, machine, CT table or names are no longer those that {run.name} was planned "
            "with; go on from the folder in which the plan was asked for, or plan again"
        )
    return found


def _write(file: Path, record: dict[str, Any]) -> None:
    with written_whole(file) as part:
        part.write_text(json.dumps(record, default=str), encoding="utf-8")
