"""Dose matrix of pyRadPlan on its TG-119 phantom; run by peers.py with the Python of the peer's venv.

    run_pyradplan.py BEAMS PHANTOM.npz FIGURES.json

Writes the phantom, its isocentre and the box of the beamlets, so that others compute the same case.
"""

from __future__ import annotations

import sys
from importlib import metadata

import numpy as np
import pyRadPlan
import SimpleITK as sitk
from clock import report, timed
from pyRadPlan import PhotonPlan, calc_dose_influence, generate_stf, load_tg119

BIXEL_MM, GRID_MM = 5.0, 3.0


def plan(gantry_deg: np.ndarray) -> PhotonPlan:
    made = PhotonPlan(machine="Generic")
    made.prop_stf = {
        "gantry_angles": gantry_deg,
        "couch_angles": np.zeros(len(gantry_deg)),
        "bixel_width": BIXEL_MM,
    }
    made.prop_dose_calc = {"dose_grid": {"resolution": dict.fromkeys("xyz", GRID_MM)}}
    return made


def main(beams: int, phantom: str, figures: str) -> None:
    pyRadPlan.settings.xp.prefer_gpu = False
    ct, cst = load_tg119()
    angles = np.linspace(0.0, 360.0, beams, endpoint=False)
    first = plan(angles[:1])
    first_stf = generate_stf(ct, cst, first)
    warm, _ = timed(lambda: calc_dose_influence(ct, cst, first_stf, first))
    whole = plan(angles)
    stf = generate_stf(ct, cst, whole)
    seconds, dij = timed(lambda: calc_dose_influence(ct, cst, stf, whole))
    matrix = dij.physical_dose.flat[0]
    rays = np.array([ray.ray_pos_bev for beam in stf.beams for ray in beam.rays])
    body = next(voi for voi in cst.vois if voi.name == "BODY")
    grid = dij.dose_grid
    np.savez(
        phantom,
        hu=sitk.GetArrayFromImage(ct.cube_hu).astype(np.int16),
        body=sitk.GetArrayFromImage(body.mask).astype(bool),
        spacing_mm=[ct.resolution[k] for k in "xyz"],
        origin_mm=ct.origin,
        dose_shape=grid.dimensions[::-1],
        dose_spacing_mm=[grid.resolution[k] for k in "xyz"],
        dose_origin_mm=grid.origin,
        isocenter_mm=np.asarray(stf.beams[0].iso_center, float),
        gantry_deg=angles,
        low_mm=rays[:, [0, 2]].min(axis=0) - BIXEL_MM / 2,
        high_mm=rays[:, [0, 2]].max(axis=0) + BIXEL_MM / 2,
    )
    report(
        figures,
        {
            "version": metadata.version("pyRadPlan"),
            "beams": beams,
            "seconds": seconds,
            "first_s": warm["wall_s"],
            "beamlets": int(matrix.shape[1]),
            "voxels": int(matrix.shape[0]),
            "voxels_reached": int(np.count_nonzero(np.bincount(matrix.indices, minlength=matrix.shape[0]))),
            "entries": int(matrix.nnz),
            "gb": (matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes) / 1e9,
        },
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
