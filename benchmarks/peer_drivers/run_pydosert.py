"""Forward dose and gradient of PyDoseRT; run by peers.py with the Python of the peer's venv.

run_pydosert.py REPEATS CASE.npz DOSE.npy FIGURES.json
"""

from __future__ import annotations

import sys
from importlib import metadata

import numpy as np
import torch
from clock import report, timed
from pydosert.data import BeamSequence
from pydosert_engine import FIELD_MM, engine_for


def sequence(case: dict[str, np.ndarray]) -> tuple[BeamSequence, list[float]]:
    """The segments as leaves, padded by shut leaves to the engine's square field, and leaf widths."""
    edges = case["leaf_edges_mm"]
    pad = (FIELD_MM / 2 + edges[0], FIELD_MM / 2 - edges[-1])
    leaves = np.pad(case["leaves_mm"], ((0, 0), (1, 1), (0, 0)))
    tensor = {
        key: torch.as_tensor(value, dtype=torch.float32)
        for key, value in (*case.items(), ("leaves_mm", leaves))
    }
    made = BeamSequence(
        mus=tensor["mu"],
        leaf_positions=tensor["leaves_mm"],
        jaw_positions=tensor["jaws_y_mm"],
        gantry_angles=torch.deg2rad(tensor["gantry_deg"]),
        collimator_angles=torch.deg2rad(tensor["collimator_deg"]),
        field_size=(FIELD_MM, FIELD_MM),
        iso_center=tuple(case["isocenter_zyx_mm"].tolist()),
        sid=1000.0,
    )
    return made, [float(pad[0]), *np.diff(edges).tolist(), float(pad[1])]


def main(repeats: int, case_file: str, dose_file: str, figures: str) -> None:
    case = dict(np.load(case_file))
    beams, widths = sequence(case)
    density = torch.as_tensor(case["density"], dtype=torch.float32)
    engine = engine_for(case, widths, beams)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return engine.compute_dose(beams, density_image=density)

    def gradient() -> None:
        for leaf in (beams.leaf_positions, beams.jaw_positions, beams.mus):
            leaf.requires_grad_(True).grad = None
        engine.compute_dose(beams, density_image=density).square().sum().backward()

    first, _ = timed(forward)
    once, dose = timed(forward, repeats)
    np.save(dose_file, dose[0].numpy())
    both, _ = timed(gradient, repeats)
    report(
        figures,
        {
            "version": metadata.version("pydosert"),
            "torch": torch.__version__,
            "segments": len(beams),
            "first_s": first["wall_s"],
            "forward": once,
            "gradient": both,
        },
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
