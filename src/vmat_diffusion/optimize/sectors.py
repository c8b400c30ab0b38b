"""The arcs cut into sectors: one ideal fluence map for each, swept by the first apertures."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dose.fluence import FluenceModel
from vmat_diffusion.geometry import Point
from vmat_diffusion.machine import Limits
from vmat_diffusion.optimize.arcs import ArcFrame
from vmat_diffusion.optimize.fluence_map import FluenceMaps, column_edges_mm, target_shadow
from vmat_diffusion.optimize.reach import Apertures, Track
from vmat_diffusion.optimize.sequence import Sector, sweep_arc

_SECTOR_DEG = 45.0


@dataclass(frozen=True, eq=False)
class Sectors:
    """All sectors of all arcs, in the order of the fluence maps."""

    frames: tuple[ArcFrame, ...]
    each: tuple[Sector, ...]

    @property
    def arc(self) -> NDArray[np.intp]:
        """The arc of each sector, from 0."""
        return np.array([s.arc for s in self.each])

    @property
    def ends_deg(self) -> NDArray[np.float64]:
        """Unwrapped gantry angle `[sectors, 2]` at the start and the stop of each."""
        return np.array([self.frames[s.arc].gantry_deg[[s.first, s.last]] for s in self.each])

    @property
    def jaws_mm(self) -> NDArray[np.float64]:
        """X1, X2, Y1, Y2 of each sector."""
        return np.array([self.frames[s.arc].jaws_mm for s in self.each])

    @property
    def middles(self) -> Track:
        """The middle of every sector as a control point of its own."""
        arc, middle = self.arc, self.ends_deg.mean(axis=1)
        index = np.arange(len(arc))
        return Track(self.frames, middle, self.jaws_mm, (), index, index, middle, np.ones(len(arc)), arc)


def cut_into_sectors(frames: tuple[ArcFrame, ...]) -> Sectors:
    """Sectors of about 45 degrees that begin and end at control points."""
    each: list[Sector] = []
    for number, frame in enumerate(frames):
        count = len(frame.gantry_deg) - 1
        parts = max(round(abs(frame.gantry_deg[-1] - frame.gantry_deg[0]) / _SECTOR_DEG), 1)
        # Every other arc is cut in between, so that the maps of both come from twice as many angles.
        between = np.concatenate([[0.0], np.arange(parts) + 0.5, [parts]])
        cuts = between if number % 2 else np.arange(parts + 1.0)
        borders = np.round(cuts * count / parts).astype(int)
        each += [Sector(number, int(a), int(b)) for a, b in itertools.pairwise(borders)]
    return Sectors(frames, tuple(each))


def open_bixels(
    sectors: Sectors,
    targets_mm: NDArray,
    isocenter_mm: Point,
    patient_position: str,
    sad_mm: float,
    model: FluenceModel,
) -> NDArray[np.bool_]:
    """Bixels `[sectors, strips, columns]` within the jaws that see targets from the middle of the sector."""
    edges, rows = column_edges_mm(model), model.row_edges_mm
    opened = np.stack(
        [
            target_shadow(
                targets_mm, gantry, sectors.frames[a].collimator_deg, sectors.frames[a].couch_deg,
                isocenter_mm, patient_position, sad_mm, rows, edges,
            )
            for gantry, a in zip(sectors.middles.gantry_deg, sectors.arc, strict=True)
        ]
    )  # fmt: skip
    centre = (edges[1:] + edges[:-1]) / 2
    for one, (x1, x2, y1, y2) in zip(opened, sectors.jaws_mm, strict=True):
        one[:, (centre < x1) | (centre > x2)] = False
        one[(rows[1:] <= y1) | (rows[:-1] >= y2)] = False
    return opened


def first_apertures(
    sectors: Sectors, maps: FluenceMaps, limits: Limits, mu_cap_per_deg: float, every: int
) -> Apertures:
    """Every n-th control point of sweeps through all maps. The leaves may still break the travel limit."""
    leaves, mu = [], []
    for number, frame in enumerate(sectors.frames):
        own = [k for k, s in enumerate(sectors.each) if s.arc == number]
        positions, meterset = sweep_arc(
            frame.gantry_deg, [sectors.each[k] for k in own], maps.mu[own], maps.column_edges_mm, limits,
            mu_cap_per_deg, rightward=number % 2 == 0,
        )  # fmt: skip
        thin = frame.thinned(every)
        leaves.append(positions[thin])
        mu.append(np.add.reduceat(meterset, thin[:-1]))
    return Apertures(np.concatenate(leaves), np.concatenate(mu))


def map_arrays(sectors: Sectors, maps: FluenceMaps, row_edges_mm: NDArray) -> dict[str, NDArray]:
    """The ideal maps with their axes and sectors, arcs numbered from 1, as a plan's record keeps them."""
    ends_deg = sectors.ends_deg % 360
    return {
        "ideal_mu": maps.mu.astype(np.float32),
        "column_edges_mm": maps.column_edges_mm,
        "row_edges_mm": row_edges_mm,
        "sector_arc": sectors.arc + 1,
        "sector_start_deg": ends_deg[:, 0],
        "sector_stop_deg": ends_deg[:, 1],
    }
