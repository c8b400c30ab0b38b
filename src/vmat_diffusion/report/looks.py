"""Which structures a report shows, in which order and colour, with their histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.evaluate.dvh import Dvh, structure_dvh
from vmat_diffusion.evaluate.goals import GoalResult

# Distinct on a white page and on a grey CT; reds and oranges are kept for targets.
_TARGET_COLOURS = ("#d7191c", "#e8710a", "#c2187c", "#b8860b", "#8b1a1a")
_ORGAN_COLOURS = (
    "#1f77b4",
    "#2ca02c",
    "#8e5bd0",
    "#0aa5b5",
    "#8c564b",
    "#e377c2",
    "#3949ab",
    "#7a9a01",
    "#00796b",
    "#6d7f92",
    "#a0522d",
    "#5e35b1",
)
_BODY_COLOUR = "#9aa3ad"
# Lines on white need this contrast; WCAG asks 3 of graphics, which yellow reaches as olive alone.
_CONTRAST_MIN = 2.2


@dataclass(frozen=True, eq=False)
class Look:
    """A structure with its colour: the structure set's own where it is known, else one of a palette.

    `repeat` counts the structures before it that have the same colour.
    """

    structure: Structure
    colour: str
    repeat: int

    @property
    def ink(self) -> str:
        """The colour for lines on a white page: the same hue, darker where it would not be seen."""
        return _on_white(self.colour)

    @property
    def name(self) -> str:
        """Canonical name of the structure."""
        return self.structure.name

    @property
    def is_target(self) -> bool:
        """Whether the structure is a target."""
        return self.structure.role == "target"

    @property
    def is_body(self) -> bool:
        """Whether the structure is the external contour."""
        return self.structure.role == "body"


@dataclass(frozen=True, eq=False)
class Shown(Look):
    """A structure as the report shows it, with its histogram."""

    dvh: Dvh


@dataclass(frozen=True, eq=False)
class ShownDose:
    """A dose on its case as pictures show it; `reference_gy` is what isodose percentages refer to."""

    case: Case
    dose: Dose
    structures: tuple[Shown, ...]
    reference_gy: float


def shown_dose(
    case: Case, dose: Dose, results: Sequence[GoalResult] = (), prescription: Prescription | None = None
) -> ShownDose:
    """The dose with the structures of `looks` and their histograms."""
    structures = shown_structures(case, dose, results, prescription)
    return ShownDose(case, dose, structures, reference_gy(dose, prescription))


def shown_structures(
    case: Case, dose: Dose, results: Sequence[GoalResult] = (), prescription: Prescription | None = None
) -> tuple[Shown, ...]:
    """The structures of `looks` with their histograms."""
    return tuple(
        Shown(s.structure, s.colour, s.repeat, structure_dvh(dose, s.structure, case.grid))
        for s in looks(case, results, prescription)
    )


def looks(
    case: Case, results: Sequence[GoalResult] = (), prescription: Prescription | None = None
) -> tuple[Look, ...]:
    """Targets by descending prescription, organs with goals, other organs, body last; empty ones left out.

    Structures of role "other" (planning helpers) appear only if they have a goal.
    """
    rank: dict[str, int] = {}
    for result in results:
        rank.setdefault(result.goal.structure, len(rank))
    levels: Mapping[str, float] = prescription.target_gy if prescription else {}
    wanted = [
        s
        for s in case.structures.values()
        if (s.role in ("target", "organ") or s.name in rank) and s.role != "body" and s.mask.any()
    ]
    targets = [s for s in wanted if s.role == "target"]
    organs = [s for s in wanted if s.role != "target"]
    targets.sort(key=lambda s: (-levels.get(s.name, 0.0), s.name))
    organs.sort(key=lambda s: (rank.get(s.name, len(rank)), s.name))
    out: list[Look] = []
    for group, palette in ((targets, _TARGET_COLOURS), (organs, _ORGAN_COLOURS)):
        for i, structure in enumerate(group):
            colour = case.source.colours.get(structure.name) or palette[i % len(palette)]
            out.append(Look(structure, colour, sum(look.colour == colour for look in out)))
    return (*out, Look(case.body, _BODY_COLOUR, 0))


def _on_white(colour: str) -> str:
    rgb = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    while 1.05 / (luminance(rgb) + 0.05) < _CONTRAST_MIN:
        rgb = [0.94 * level for level in rgb]
    return "#" + "".join(f"{round(255 * level):02x}" for level in rgb)


def luminance(rgb: Sequence[float]) -> float:
    """Relative luminance of a colour in sRGB (0 to 1 each), by WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def reference_gy(dose: Dose, prescription: Prescription | None) -> float:
    """The dose that isodose percentages refer to: the highest prescription, or else the maximum dose."""
    if prescription is not None and prescription.target_gy:
        return max(prescription.target_gy.values())
    return max(float(dose.gy.max()), 1e-6)
