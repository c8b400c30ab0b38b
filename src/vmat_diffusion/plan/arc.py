"""Plans as the linac delivers them: arcs of control points around one isocentre."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import PlanError
from vmat_diffusion.geometry import Point


@dataclass(frozen=True, eq=False)
class Arc:
    """One beam of n control points.

    `gantry_deg[n]` is unwrapped: consecutive differences are the signed rotation (positive is
    clockwise, IEC), the angle itself is meant modulo 360; equal angles make a static beam.
    `leaves_mm[n, 2, pairs]` at the isocentre plane, bank 0 = X1 <= bank 1 = X2, pairs by ascending Y.
    `jaws_mm[n, 4]` is X1, X2, Y1, Y2. `mu[n - 1]` is the meterset of each segment, per fraction.
    """

    gantry_deg: NDArray[np.float64]
    collimator_deg: float
    couch_deg: float
    leaves_mm: NDArray[np.float64]
    jaws_mm: NDArray[np.float64]
    mu: NDArray[np.float64]
    name: str = ""
    number: int = 1

    def __post_init__(self) -> None:
        for name in ("gantry_deg", "leaves_mm", "jaws_mm", "mu"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        n = len(self.gantry_deg)
        if n < 2:
            raise PlanError(f"beam {self.name}: {n} control points; at least 2 are needed")
        if self.leaves_mm.ndim != 3 or self.leaves_mm.shape[:2] != (n, 2):
            raise PlanError(f"beam {self.name}: leaves of shape {self.leaves_mm.shape}, not ({n}, 2, pairs)")
        if self.jaws_mm.shape != (n, 4) or self.mu.shape != (n - 1,):
            raise PlanError(
                f"beam {self.name}: jaws {self.jaws_mm.shape} and mu {self.mu.shape} do not fit {n} "
                "control points"
            )
        for what, array in (
            ("gantry angle", self.gantry_deg),
            ("leaf position", self.leaves_mm),
            ("jaw position", self.jaws_mm),
            ("MU", self.mu),
        ):
            if not np.all(np.isfinite(array)):
                raise PlanError(f"beam {self.name}: a {what} is not finite; export the plan again")

    @property
    def title(self) -> str:
        """Number and name, as sentences about the beam begin."""
        return f"beam {self.number} ({self.name})" if self.name else f"beam {self.number}"

    @property
    def total_mu(self) -> float:
        """Monitor units of the beam, per fraction."""
        return float(self.mu.sum())

    @property
    def rotates(self) -> bool:
        """Whether the gantry moves while the beam is on."""
        return bool(np.any(np.abs(np.diff(self.gantry_deg)) > 1e-6))


@dataclass(frozen=True, eq=False)
class Plan:
    """A deliverable plan: arcs around one isocentre, MU per fraction, number of fractions.

    `dose_rate_mu_min` is the cap written as DoseRateSet; None takes the machine's maximum.
    """

    arcs: tuple[Arc, ...]
    isocenter_mm: Point
    fractions: int
    machine: str
    label: str = "VMAT"
    patient_position: str = "HFS"
    dose_rate_mu_min: float | None = None
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fractions < 1:
            raise PlanError(f"plan of {self.fractions} fractions; at least 1 is needed")
        if not np.all(np.isfinite(self.isocenter_mm)):
            raise PlanError("the isocentre is not finite; export the plan again")
        if self.dose_rate_mu_min is not None and not self.dose_rate_mu_min > 0:
            raise PlanError(f"dose rate {self.dose_rate_mu_min:g} MU/min must be positive; set or omit it")

    @property
    def total_mu(self) -> float:
        """Monitor units of all beams, per fraction."""
        return sum(arc.total_mu for arc in self.arcs)
