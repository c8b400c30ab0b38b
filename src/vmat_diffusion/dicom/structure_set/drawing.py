"""A CT and its structure set as a person looks at them: pixels, and contours as drawn with their colours.

`read_case` makes masks of all contours at once. To look at a case, the images are wanted first, the contours
as they were drawn, and masks one by one, so that a large CT with many structures needs little memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Structure
from vmat_diffusion.dicom.attributes import about, has, integer, items, numbers, quiet
from vmat_diffusion.dicom.ct import AIR_HU, Series, open_series, read_hu, whole_hu
from vmat_diffusion.dicom.folder import Found, open_folder
from vmat_diffusion.dicom.lattice import Placement, placement_of
from vmat_diffusion.dicom.matching import choose_images
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.dicom.patient_code import one_patient
from vmat_diffusion.dicom.structure_set.body import body_from_ct, without_holes
from vmat_diffusion.dicom.structure_set.rasterize import drawn_on_slices
from vmat_diffusion.dicom.structure_set.structures import Named, name_rois, read_rois, structures_on
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid
from vmat_diffusion.origin import Origin

# A closed contour in a plane of the grid: x and y in mm.
Outline = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Drawing:
    """One region as drawn: its name in the case and in the file, role, colour (0 to 255) or None.

    `outlines` holds, by slice of the grid, the closed contours `(n, 2)` in mm that count there. It is empty
    where the images are not axial.
    """

    number: int
    name: str
    alias: str
    role: str
    colour: tuple[int, int, int] | None
    outlines: Mapping[int, tuple[Outline, ...]]


@dataclass(frozen=True, eq=False)
class Scan:
    """The images of a case on its grid, and what is drawn on them.

    `origin` says whose they are; `steps` names what was done to the images. `axial` says whether outlines are
    those of the file; else those of the masks must stand in.
    """

    grid: Grid
    hu: NDArray[np.int16]
    drawings: tuple[Drawing, ...]
    origin: Origin
    series_uid: str
    axial: bool
    steps: tuple[str, ...]
    _placement: Placement
    _named: tuple[Named, ...]

    def masks(self) -> Iterator[Structure]:
        """The structures of the case, made one by one as `read_case` makes them; the body is the last.

        What cannot be read as drawn is left out here: `read_case` has refused or named it.
        """
        body: Structure | None = None
        for entry in self._named:
            try:
                found, _, _ = structures_on((entry,), self._placement, self.origin.frame)
            except CaseError:
                continue
            for structure in found.values():
                if structure.role != "body":
                    yield structure
                elif body is None:
                    body = replace(structure, mask=without_holes(structure.mask))
        yield body or Structure("BODY", "body", body_from_ct(self.hu, self.grid))


@quiet()
def read_scan(folder: str | Path, *, mapping: str | Path | Mapping[str, Any] | None = None) -> Scan:
    """The CT in a folder and the structure set drawn on it; HU are rounded to whole numbers.

    `mapping` is a structure-name table, None for the shipped one. Raises CaseError as `read_case` does.
    """
    found = open_folder(folder)
    if found.refused:
        raise CaseError(found.refused[0])
    structure_set, files, chosen = choose_images(found)
    series = open_series(files)
    placement = placement_of(series.lattice)
    patient = one_patient([("CT", f.dataset) for f in files] + [("structure set", structure_set.dataset)])
    with about(structure_set.label):
        named, _ = name_rois(read_rois(structure_set.dataset), load_table(mapping))
        drawings, axial = _drawings(named, _colours(structure_set), placement, series.frame_uid)
    stored, padding = read_hu(series, whole=True)
    return Scan(
        placement.grid,
        _whole(placement.values(stored, AIR_HU)),
        drawings,
        _origin(series, structure_set, patient),
        series.uid,
        axial,
        (*chosen, *series.steps, *placement.steps, *padding),
        placement,
        named,
    )


def _whole(hu: NDArray) -> NDArray[np.int16]:
    """HU as 16-bit whole numbers, layer by layer: a large CT need not lie in memory three times."""
    if hu.dtype == np.int16:
        return hu
    out = np.empty(hu.shape, np.int16)
    for layer, values in zip(out, hu, strict=True):
        layer[...] = whole_hu(values)
    return out


def _origin(series: Series, structure_set: Found, patient: str) -> Origin:
    return Origin(
        "CT",
        patient=patient,
        study=series.study_uid,
        frame=series.frame_uid,
        position=series.patient_position,
        structure_set=structure_set.uid,
    )


def _colours(structure_set: Found) -> dict[int, tuple[int, int, int]]:
    """ROIDisplayColor by the number of the region; those that are no colour are left out."""
    out = {}
    for item in items(structure_set.dataset, "ROIContourSequence"):
        if not has(item, "ROIDisplayColor"):
            continue
        try:
            red, green, blue = (int(v) for v in numbers(item, "ROIDisplayColor", 3))
        except CaseError:
            continue
        if all(0 <= part <= 255 for part in (red, green, blue)):
            out[integer(item, "ReferencedROINumber")] = (red, green, blue)
    return out


def _drawings(
    named: Sequence[Named], colours: Mapping[int, tuple[int, int, int]], placement: Placement, frame: str
) -> tuple[tuple[Drawing, ...], bool]:
    axial = placement.axes is not None and placement.axes[0] == 0
    out = []
    for entry in named:
        roi = entry.roi
        elsewhere = bool(roi.frame_uid and frame and roi.frame_uid != frame)
        outlines = {} if elsewhere or not axial else _on_grid(entry, placement)
        out.append(Drawing(roi.number, entry.name, roi.alias, entry.role, colours.get(roi.number), outlines))
    return tuple(out), axial


def _on_grid(entry: Named, placement: Placement) -> dict[int, tuple[Outline, ...]]:
    """The contours that count on each slice of an axial grid; none where a contour is not planar."""
    lattice, grid = placement.lattice, placement.grid
    try:
        slices = drawn_on_slices(entry.roi.contours, lattice)
    except CaseError:
        return {}
    out: dict[int, tuple[Outline, ...]] = {}
    across, along = lattice.spacing_mm[0] * lattice.row, lattice.spacing_mm[1] * lattice.column
    for k, drawn in slices.items():
        z = lattice.origins_mm[k, 2]
        index = round((z - grid.origin_mm[2]) / grid.spacing_mm[2])
        if not 0 <= index < grid.shape[0]:
            continue
        points = [lattice.origins_mm[0] + np.outer(p[:, 0], across) + np.outer(p[:, 1], along) for p in drawn]
        out[index] = (*out.get(index, ()), *(p[:, :2].astype(np.float32) for p in points))
    return out
