"""A machine of your own from water-tank scans: the beam is fitted, the collimator taken from a template.

    python examples/own_machine.py [FOLDER]

The scans here are made up from the shipped beam with a wider focal spot; yours come as w2CAD, RFA300, MCC or
CSV files. `vmat-diffusion beam fit` does the same and draws the residuals.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import vmat_diffusion as vd
from vmat_diffusion.commissioning.beam_fit import Scan, calibrated, scan_dose

SIDES_MM = (50.0, 100.0, 200.0)
DEPTHS_MM = np.concatenate([np.arange(1.0, 30.0, 2.0), np.arange(30.0, 301.0, 5.0)])


def measure(folder: Path) -> tuple[Path, Path, Path]:
    """Depth doses, profiles and output factors of a linac as CSV files."""
    beam = calibrated(replace(vd.load_machine("generic_6mv").require_beam(), focal_sigma_mm=1.2))

    def dose(side_mm: float, x_mm: np.ndarray, depth_mm: np.ndarray) -> np.ndarray:
        n, zero = len(x_mm), np.zeros(len(x_mm))
        points = Scan(np.full(n, side_mm), np.full(n, 1000.0), zero.astype(int), x_mm, depth_mm, zero, zero)
        return scan_dose(beam, points)

    head = "curve,field_mm,ssd_mm,type,axis,depth_mm,x_mm,y_mm,z_depth_mm,dose_rel"
    depth_doses, profiles, factors = [head], [head], ["# ssd_mm = 1000", "# depth_mm = 100", "side_mm,of"]
    for side in SIDES_MM:
        field = f"{side:03.0f}*{side:03.0f},1000"
        axis = dose(side, 0 * DEPTHS_MM, DEPTHS_MM)
        depth_doses += [
            f"PDD,{field},OPD,Z,,0,0,{z},{100 * d / axis.max():.4f}"
            for z, d in zip(DEPTHS_MM, axis, strict=True)
        ]
        x = np.arange(-side * 0.8, side * 0.8 + 1, 2.0)
        across = dose(side, x, np.full(len(x), 100.0))
        profiles += [
            f"PRF,{field},OPP,X,100,{a},0,100,{100 * d / across.max():.4f}"
            for a, d in zip(x, across, strict=True)
        ]
        at_reference = [dose(s, np.zeros(1), np.full(1, 100.0))[0] for s in (side, 100.0)]
        factors.append(f"{side},{at_reference[0] / at_reference[1]:.5f}")
    files = tuple(folder / name for name in ("depth_doses.csv", "profiles.csv", "output_factors.csv"))
    for file, lines in zip(files, (depth_doses, profiles, factors), strict=True):
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files  # type: ignore[return-value]


def main(folder: Path) -> vd.Machine:
    """Fit the machine into `folder/my_linac.toml`, and return it as any command would load it."""
    depth_doses, profiles, factors = measure(folder)
    file = folder / "my_linac.toml"
    report = vd.fit_machine([depth_doses], [profiles], factors, file)
    print(f"residual {report.rms_percent:.2f} % of the reference dose")
    machine = vd.load_machine(str(file))
    print(f"{machine.title}: focal spot of {machine.require_beam().focal_sigma_mm:.2f} mm")
    return machine


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "own_machine")
    out.mkdir(parents=True, exist_ok=True)
    main(out)
