"""Synthetic patients: random but plausible anatomies with CT, contours and prescription, by seed.

`synthetic_case("prostate", 7)` is all that most callers need. `draw_patient` draws the parameters of a
patient, `build` makes the case of them without any further chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vmat_diffusion.anatomy import head_neck, lung, prostate
from vmat_diffusion.anatomy.head_neck import HeadNeckParameters
from vmat_diffusion.anatomy.lung import LungParameters
from vmat_diffusion.anatomy.prostate import ProstateParameters
from vmat_diffusion.anatomy.scan import Parts
from vmat_diffusion.anatomy.tissue import render
from vmat_diffusion.case import Case, Structure
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Point

Parameters = ProstateParameters | HeadNeckParameters | LungParameters

_DRAW: dict[str, Callable[[np.random.Generator], Parameters]] = {
    "prostate": prostate.draw,
    "head_neck": head_neck.draw,
    "lung": lung.draw,
}
_PARTS: dict[type, Callable[[Any, Point], Parts]] = {
    ProstateParameters: prostate.parts,
    HeadNeckParameters: head_neck.parts,
    LungParameters: lung.parts,
}
SITES: tuple[str, ...] = tuple(_DRAW)
SPACING_MM: Point = (2.0, 2.0, 2.5)


def draw_patient(site: str, rng: np.random.Generator | int) -> Parameters:
    """Parameters of a random patient of one of `SITES`, from a generator or a seed.

    Raises CaseError for an unknown site or a negative seed.
    """
    if site not in _DRAW:
        raise CaseError(
            f"there are no synthetic patients for site {site!r}; choose one of {', '.join(SITES)}"
        )
    if not isinstance(rng, np.random.Generator):
        if rng < 0:
            raise CaseError(f"seed {rng} of a synthetic patient is negative; give 0 or more")
        rng = np.random.default_rng(rng)
    return _DRAW[site](rng)


def build(parameters: Parameters, *, spacing_mm: Point = SPACING_MM, id: str = "synthetic") -> Case:
    """The case of drawn parameters: CT, contours, prescription; the same for the same parameters.

    `spacing_mm` is (x, y, z), from 1 to 6 mm. Volumes of contours hardly depend on it. A few seconds
    at the default. Raises CaseError for a spacing beyond these limits.
    """
    if not all(1.0 <= s <= 6.0 for s in spacing_mm):
        raise CaseError(f"spacing {spacing_mm} mm of a synthetic patient must be within 1 to 6 mm")
    spacing = (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2]))
    made = _PARTS[type(parameters)](parameters, spacing)
    scan = parameters.scan
    hu = render(made.space, made.layers, texture_seed=scan.texture_seed, noise_hu=scan.noise_hu)
    structures = {
        name: Structure(name, role, mask, alias=name)
        for name, (role, mask) in made.contours.items()
        if mask.any()
    }
    return Case(id, parameters.site, made.space.grid, hu, structures, made.prescription)


def synthetic_case(site: str, seed: int, spacing_mm: Point = SPACING_MM) -> Case:
    """The patient of a site with a seed. The same seed gives the same case, to the last bit."""
    return build(draw_patient(site, seed), spacing_mm=spacing_mm, id=f"{site}_{seed}")
