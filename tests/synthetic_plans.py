"""Plans and DICOM studies made from the built-in phantoms, for tests of writing and reading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Source
from vmat_diffusion.dicom import write_case
from vmat_diffusion.geometry import beam_axes, project
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan


def as_study(folder: Path, case: Case) -> Case:
    """Write the case and return it with the source that refers to its files, without the reader."""
    files = write_case(folder, case)
    image, structures = pydicom.dcmread(files[0]), pydicom.dcmread(files[-1])
    source = Source(
        study_uid=image.StudyInstanceUID,
        frame_of_reference_uid=image.FrameOfReferenceUID,
        series_uid=image.SeriesInstanceUID,
        image_uids=tuple(pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in files[:-1]),
        structure_set_uid=structures.SOPInstanceUID,
        image_path=str(files[0]),
        roi_numbers={roi.ROIName: int(roi.ROINumber) for roi in structures.StructureSetROISequence},
    )
    return replace(case, source=source)


def conformal_arc(
    case: Case,
    machine: Machine,
    gantry_deg: NDArray[np.float64],
    *,
    collimator_deg: float = 10.0,
    number: int = 1,
    mu_per_segment: float = 5.0,
) -> Arc:
    """Leaves that follow the outline of the first target with 3 mm, jaws around them."""
    z, y, x = np.nonzero(case.targets[0].mask)
    ax, ay, az = case.grid.axes_mm
    points = np.stack([ax[x], ay[y], az[z]], axis=-1)[::7]
    edges = np.asarray(machine.mlc.layers[0].boundaries_mm)
    leaves = np.empty((len(gantry_deg), 2, machine.mlc.pairs))
    for k, gantry in enumerate(gantry_deg):
        u, v, _ = project(points, beam_axes(gantry, collimator_deg), (0.0, 0.0, 0.0), machine.sad_mm).T
        row = np.clip(np.searchsorted(edges, v) - 1, 0, machine.mlc.pairs - 1)
        used = np.unique(row)
        nearest = used[np.argmin(np.abs(np.arange(machine.mlc.pairs)[:, None] - used), axis=1)]
        leaves[k, 0] = [u[row == r].min() - 3.0 for r in nearest]
        leaves[k, 1] = [u[row == r].max() + 3.0 for r in nearest]
    # A running mean over 18 degrees keeps every leaf within its speed.
    padded = np.pad(leaves, ((4, 4), (0, 0), (0, 0)), mode="edge")
    leaves = np.mean([padded[k : k + len(leaves)] for k in range(9)], axis=0)
    jaw = float(np.abs(leaves).max()) + 2.0
    return Arc(
        gantry_deg=np.asarray(gantry_deg, float),
        collimator_deg=collimator_deg,
        couch_deg=0.0,
        leaves_mm=leaves,
        jaws_mm=np.tile([-jaw, jaw, -60.0, 60.0], (len(gantry_deg), 1)),
        mu=mu_per_segment * (1 + 0.3 * np.sin(np.arange(len(gantry_deg) - 1))),
        name=f"Arc {number}",
        number=number,
    )


def two_arcs(case: Case, machine: Machine, *, step_deg: float = 2.0) -> Plan:
    """A clockwise and a counter-clockwise arc from 181 to 179 degrees and back."""
    angles = np.arange(181.0, 539.0 + 1e-9, step_deg)
    arcs = (
        conformal_arc(case, machine, angles),
        conformal_arc(case, machine, angles[::-1], collimator_deg=350.0, number=2),
    )
    assert case.prescription is not None
    return Plan(arcs, (0.0, 0.0, 0.0), case.prescription.fractions, machine.name)
