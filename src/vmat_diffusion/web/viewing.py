"""What the page that shows a plan asks the server for: planes, outlines, histograms, beams, goals, checks.

All of it is read only. `router` is included by the application, which decides who may ask.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Response
from numpy.typing import NDArray

from vmat_diffusion.errors import CaseError, PlanError
from vmat_diffusion.geometry import subgrid
from vmat_diffusion.origin import compare
from vmat_diffusion.web.view import beams, histograms, scorecard
from vmat_diffusion.web.view.cases import CaseStore
from vmat_diffusion.web.view.masks import PackedStructure
from vmat_diffusion.web.view.planes import ct_plane, dose_plane, in_steps, layer_grid, mask_outlines
from vmat_diffusion.web.view.runs import INDEPENDENT, PLANNED, Run, Runs

_RAW = "application/octet-stream"
_JSON = "application/json"
# Histograms, arcs and projections of 5 to 300 kB as they are sent, surfaces of structures of up to 2 MB.
_ANSWERS_MOST_BYTES = 96_000_000
_Kept = TypeVar("_Kept", bytes, NDArray[np.float32])


class Answers:
    """Results by what was asked, those asked for longest ago go first. Safe for threads.

    Bytes of JSON as they are sent and arrays; together no more than `most_bytes` of all cases.
    """

    def __init__(self, most_bytes: int = _ANSWERS_MOST_BYTES) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _Kept]) -> _Kept:
        """What was kept for a key, else what `make` gives."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]  # type: ignore[no-any-return]
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += _size(made)
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
        return made


def _size(kept: Any) -> int:
    return kept.nbytes if isinstance(kept, np.ndarray) else len(kept)


def _json(value: Any) -> bytes:
    """Plain data as it is sent; numbers that are not finite are a defect."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8")


class _Desk:
    """The runs that are being looked at, by their names in requests."""

    def __init__(
        self, folder_of: Callable[[str], Path], case_of: Callable[[str], Path] | None, store: CaseStore
    ):
        self.folder_of, self.case_of = folder_of, case_of
        self.runs = Runs(store)
        self.answers = Answers()

    def run(self, run_id: str) -> Run:
        folder = self.folder_of(run_id)
        return self.runs.open(folder, self.case_of(run_id) if self.case_of else case_beside(folder))

    def structure(self, run: Run, number: int) -> PackedStructure:
        found = self.runs.structures(run)
        if not 0 <= number < len(found):
            raise CaseError(
                f"structure {number} is not one of the {len(found)} of the case; load the page again"
            )
        return found[number]

    def facts(self, run_id: str) -> dict[str, Any]:
        """What is shown first."""
        return self.run(run_id).facts()

    def structures(self, run_id: str) -> list[dict[str, Any]]:
        """The structures with role, colour, place and slices, in the order of their numbers."""
        run = self.run(run_id)
        return structures_of(run, self.runs.structures(run))

    def ct(self, run_id: str, plane: str, index: int) -> Response:
        """HU of a plane, 16-bit little-endian, row by row."""
        images = self.run(run_id).images
        layer_grid(images.grid, plane, index)
        return Response(ct_plane(images.hu, plane, index).tobytes(), media_type=_RAW)

    def dose(self, run_id: str, volume: str, plane: str, index: int) -> Response:
        """A dose at the pixels of a plane in steps of its `step_gy`, unsigned 16-bit little-endian."""
        run = self.run(run_id)
        if volume not in run.volumes:
            raise CaseError(
                f"the run has no volume {volume[:20]!r}, but {', '.join(run.volumes)}; choose one of these"
            )
        shown = run.volumes[volume]
        gy = dose_plane(shown.gy, shown.grid, run.images.grid, plane, index)
        return Response(in_steps(gy, shown.step_gy).tobytes(), media_type=_RAW)

    def outlines(self, run_id: str, plane: str, index: int) -> dict[str, Any]:
        """The contours on a plane by the numbers of the structures: as drawn, or those of the masks."""
        run = self.run(run_id)
        return outlines_on(run, self.runs.structures(run), plane, index)

    def dvh(self, run_id: str, number: int) -> Response:
        """The histograms of a structure for the planned and the independent dose."""
        run = self.run(run_id)

        def made() -> bytes:
            structure = self.structure(run, number)
            doses = {PLANNED: run.dose, INDEPENDENT: run.check}
            found = {n: histograms.curves(structure, run.images.grid, d) for n, d in doses.items() if d}
            return _json({"name": structure.name, "step_gy": histograms.AXIS_STEP_GY, "curves": found})

        return Response(self.answers.get(("dvh", run.key, number), made), media_type=_JSON)

    def goals(self, run_id: str) -> dict[str, Any]:
        """The scorecard of goals."""
        return scorecard.goals(self.run(run_id).record)

    def checks(self, run_id: str) -> dict[str, Any]:
        """The gate's checks with their evidence."""
        return scorecard.checks(self.run(run_id).record)

    def complexity(self, run_id: str) -> dict[str, Any]:
        """The metrics of complexity beside published ranges."""
        return scorecard.complexity(self.run(run_id).record)

    def arcs(self, run_id: str) -> Response:
        """Control points of all arcs, with the machine's limits."""
        run = self.run(run_id)
        found = self.answers.get(("arcs", run.key), lambda: _json(beams.control_points(run)))
        return Response(found, media_type=_JSON)

    def projections(self, run_id: str, arc: int, point: int, structures: str) -> Response:
        """What the source sees of structures at a control point; their numbers have commas between."""
        run = self.run(run_id)
        if run.plan is None or not 0 <= arc < len(run.plan.arcs):
            raise PlanError(f"arc {arc} is not one of the plan; load the page again")
        chosen = run.plan.arcs[arc]
        if not 0 <= point < len(chosen.gantry_deg):
            raise PlanError(f"control point {point} is not one of the arc; load the page again")
        parts = [b'"%d":%b' % (n, self._projection(run, arc, point, n)) for n in _numbers(structures)]
        return Response(b"{" + b",".join(parts) + b"}", media_type=_JSON)

    def _projection(self, run: Run, arc: int, point: int, number: int) -> bytes:
        def made() -> bytes:
            structure, plan = self.structure(run, number), run.plan
            assert plan is not None
            surface = self.answers.get(
                ("surface", run.images.key, number), lambda: beams.surface_mm(structure, run.images.grid)
            )
            angle = float(plan.arcs[arc].gantry_deg[point])
            lines = beams.projection(surface, plan, plan.arcs[arc], angle, beams.sad_mm(run))
            return _json([_plain(line, 1) for line in lines])

        return self.answers.get(("projection", run.key, arc, point, number), made)

    def against(self, run_id: str, other: str) -> dict[str, Any]:
        """Whether another plan can be shown beside this one: on the same images, pixel by pixel."""
        one, two = self.run(run_id), self.run(other)
        return {"remarks": list(require_same_images(one, two))}


def router(
    folder_of: Callable[[str], Path],
    case_of: Callable[[str], Path] | None = None,
    *,
    store: CaseStore | None = None,
) -> APIRouter:
    """The routes under /api/runs/{run_id}/. `folder_of` gives a run's folder, `case_of` that of its case.

    Without `case_of` the case lies in the folder `case` in the run's folder or beside it. `store` keeps cases
    ready to look at; without one they are kept in a temporary folder as long as the process runs.
    """
    desk = _Desk(folder_of, case_of, store or CaseStore(_temporary()))
    routes = APIRouter(prefix="/api/runs/{run_id}")
    for path, answer in (
        ("/view", desk.facts),
        ("/structures", desk.structures),
        ("/ct/{plane}/{index}", desk.ct),
        ("/dose/{volume}/{plane}/{index}", desk.dose),
        ("/outlines/{plane}/{index}", desk.outlines),
        ("/dvh/{number}", desk.dvh),
        ("/goals", desk.goals),
        ("/checks", desk.checks),
        ("/complexity", desk.complexity),
        ("/arcs", desk.arcs),
        ("/arcs/{arc}/projections/{point}", desk.projections),
        ("/against/{other}", desk.against),
    ):
        routes.add_api_route(path, answer, methods=["GET"], response_model=None)
    return routes


_HELD: list[tempfile.TemporaryDirectory[str]] = []


def _temporary() -> Path:
    """A folder for this user alone that goes when the process ends."""
    _HELD.append(tempfile.TemporaryDirectory(prefix="vmat_view_"))
    return Path(_HELD[-1].name)


def case_beside(folder: Path) -> Path:
    """The case of a run that lies with it. Raises CaseError where there is none."""
    for place in (folder / "case", folder.parent / "case"):
        if place.is_dir():
            return place
    raise CaseError("the images of the run are not at hand; restore the case's folder")


def structures_of(run: Run, structures: tuple[PackedStructure, ...]) -> list[dict[str, Any]]:
    """What the page lists of the structures of a run; numbers count from 0 in this order."""
    grid = run.images.grid
    regions = {region["name"]: (k, region) for k, region in enumerate(run.images.regions)}
    levels = run.record.get("prescription_gy") or {}
    out = []
    for number, structure in enumerate(structures):
        k, region = regions.get(structure.name, (-1, {}))
        low, high = subgrid(grid, structure.box).bounds_mm
        drawn = run.images.outlines.layers_of(k) if k >= 0 else []
        out.append(
            {
                "number": number,
                "name": structure.name,
                "alias": structure.alias,
                "role": structure.role,
                "colour": region.get("colour"),
                "prescribed_gy": levels.get(structure.name),
                "low_mm": low,
                "high_mm": high,
                "slices": structure.layers(),
                "drawn": [drawn[0], drawn[-1]] if drawn else None,
            }
        )
    return out


def outlines_on(
    run: Run, structures: tuple[PackedStructure, ...], plane: str, index: int
) -> dict[str, dict[str, Any]]:
    """The contours on a plane, as `{"0": {"drawn": true, "lines": [[[x, y], ...], ...]}, ...}` in mm.

    On an axial slice they are as drawn in the structure set. Where nothing is drawn there (between drawn
    slices, in other planes, for a body made from the CT) they are the outlines of the mask.
    """
    images = run.images
    layer_grid(images.grid, plane, index)
    drawn: dict[str, list[list[list[float]]]] = {}
    if plane == "axial" and images.axial:
        for region, points in images.outlines.on(index):
            drawn.setdefault(images.regions[region]["name"], []).append(_plain(points, 2))
    out: dict[str, dict[str, Any]] = {}
    for number, structure in enumerate(structures):
        if structure.name in drawn:
            out[str(number)] = {"drawn": True, "lines": drawn[structure.name]}
        elif lines := mask_outlines(structure, images.grid, plane, index):
            out[str(number)] = {"drawn": False, "lines": [_plain(line, 2) for line in lines]}
    return out


def require_same_images(one: Run, two: Run) -> tuple[str, ...]:
    """What to know of two plans side by side. Raises CaseError where their images differ."""
    same = one.images.grid.matches(two.images.grid) and one.images.series_uid == two.images.series_uid
    if not same or one.images.origin.frame != two.images.origin.frame:
        raise CaseError(
            "the two plans were made on different images or in another frame of reference, so no pixel of "
            "one belongs to the other; choose plans of one CT"
        )
    found = compare(one.images.origin, two.images.origin)
    return (*found.contradictions, *found.silences)


def _plain(points: Any, digits: int) -> list[list[float]]:
    return np.round(np.asarray(points, np.float64), digits).tolist()  # type: ignore[no-any-return]


def _numbers(text: str) -> list[int]:
    """Whole numbers with commas between. Raises CaseError for anything else and for more than 40."""
    parts = text.split(",") if text else []
    if len(parts) > 40 or not all(part.isdecimal() and len(part) < 6 for part in parts):
        raise CaseError("structures must be up to 40 numbers with commas between; load the page again")
    return sorted({int(part) for part in parts})
