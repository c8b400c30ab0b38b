"""Small clinical folders with everything in them, as many as a test wants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from dicom_files import (
    beam,
    ct_series,
    cylinder_hu,
    rt_dose,
    rt_plan,
    square,
    structure_set,
    write_patient,
)
from pydicom.dataset import Dataset

KINDS = ("CT", "RTSTRUCT", "RTDOSE", "RTPLAN")


def raw_patient(
    folder: Path,
    *,
    number: int = 0,
    leave_out: tuple[str, ...] = (),
    names: Mapping[str, str] | None = None,
    static: bool = False,
) -> Path:
    """A cylinder of 40 mm with a target, a cord, 60 Gy and one arc; everything shifts with `number`.

    `names` replaces the names External, PTV60 and cord; `static` makes the beam one of fixed gantry.
    """
    said = {"External": "External", "PTV60": "PTV60", "cord": "cord"} | dict(names or {})
    hu = cylinder_hu(8, 16) + np.int16(number % 40)
    images = ct_series(hu, series=f"1.2.3.3.{number}")
    heights = [float(image.ImagePositionPatient[2]) for image in images]
    shift = 0.5 * (number % 5)
    rois = {
        said["External"]: [("CLOSED_PLANAR", square(0, 0, 17.0, z)) for z in heights],
        said["PTV60"]: [("CLOSED_PLANAR", square(shift, 0, 6.2, z)) for z in heights[2:-2]],
        said["cord"]: [("CLOSED_PLANAR", square(0, 9, 3.1, z)) for z in heights],
    }
    gy = np.full((6, 9, 11), 6.0)
    gy[1:5, 2:7, 3:8] = 60.0 + number % 7
    angles = [40.0] * 7 if static else [180, 240, 300, 0, 60, 120, 179]
    kinds: dict[str, list[Dataset]] = {
        "CT": images,
        "RTSTRUCT": [structure_set(images, rois)],
        "RTDOSE": [rt_dose(gy, origin_mm=(-20.0, -20.0, 1.0))],
        "RTPLAN": [rt_plan([beam(gantry_deg=angles, direction="NONE" if static else "CW")])],
    }
    for dataset in (d for group in kinds.values() for d in group):
        dataset.PatientID, dataset.PatientBirthDate = f"SECRET-{number}", "19500101"
        dataset.StudyInstanceUID = f"1.2.3.2.{number}"
    written = [d for kind in KINDS[1:] if kind not in leave_out for d in kinds[kind]]
    return write_patient(folder, [] if "CT" in leave_out else images, *written)
