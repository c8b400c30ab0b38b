"""The five planning cases of AAPM TG-119, and how a plan stands beside the institutions of the report.

Ezzell et al., IMRT commissioning: multiple institution planning and dosimetry comparisons, Med Phys
36:5359 (2009). Geometries are in `phantom`, goals in the shipped sheets. A figure or size is `verified` where
it was found again in a publication; all means and standard deviations here are recalled. docs/tg119.md says
what was read where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vmat_diffusion.evaluate.goals import Goal, GoalSheet, load_goals

SOURCE = (
    "Ezzell et al., Med Phys 36:5359 (2009), AAPM TG-119 (means and standard deviations recalled, unverified)"
)

_MATRAD_C = "167.8 cc in the open matRad copy of the case"


@dataclass(frozen=True)
class Published:
    """What the institutions of the report reached for one goal: mean and standard deviation, Gy.

    `verified` says that both were compared with the report's table.
    """

    structure: str
    metric: str
    mean_gy: float
    sd_gy: float
    verified: bool = False


@dataclass(frozen=True)
class Size:
    """A size of a case's geometry, in words; `source` is where it was found again, "" where it was not."""

    what: str
    source: str = ""

    @property
    def verified(self) -> bool:
        """Whether the size was found again."""
        return bool(self.source)


@dataclass(frozen=True)
class Tg119Case:
    """One of the report's planning problems: a phantom, a goal sheet and what was published for each goal.

    `sizes` are those of the report that the phantom is built to.
    """

    name: str
    phantom: str
    sizes: tuple[Size, ...]
    published: tuple[Published, ...]

    @property
    def goals(self) -> str:
        """The name of its goal sheet."""
        return f"tg119_{self.name}"

    def sheet(self) -> GoalSheet:
        """The case's goals."""
        return load_goals(self.goals)

    def scored(self, values: Mapping[tuple[str, str], float | None]) -> tuple[ScoredGoal, ...]:
        """The sheet's goals with their values, in Gy by structure and statement, in the sheet's order."""
        found = {(p.structure, p.metric): p for p in self.published}
        return tuple(
            ScoredGoal(
                goal, values.get((goal.structure, goal.statement)), found[goal.structure, str(goal.metric)]
            )
            for goal in self.sheet().goals
        )


@dataclass(frozen=True)
class ScoredGoal:
    """A goal of the report with a plan's value, None where there is none, beside what was published."""

    goal: Goal
    value_gy: float | None
    published: Published

    @property
    def published_reached(self) -> bool:
        """Whether the report's institutions reached the goal on average."""
        return self.goal.status(self.published.mean_gy) == "pass"

    @property
    def reaches_goal(self) -> bool:
        """Whether the plan reaches the goal; a sheet's variation does not count."""
        return self._reaches(self.goal.limit)

    @property
    def reaches_published_mean(self) -> bool:
        """Whether the plan is at least as good as the report's institutions on average."""
        return self._reaches(self.published.mean_gy)

    @property
    def reaches_goal_or_mean(self) -> bool:
        """Whether the plan reaches the goal or, where the institutions missed it on average, their mean."""
        return self.reaches_goal or (not self.published_reached and self.reaches_published_mean)

    def _reaches(self, gy: float) -> bool:
        needed = replace(self.goal, limit=gy, variation=None)
        return self.value_gy is not None and needed.status(self.value_gy) == "pass"

    def record(self) -> dict[str, Any]:
        """Plain data; doses in Gy."""
        return {
            "structure": self.goal.structure,
            "goal": self.goal.statement,
            "limit": self.goal.limit,
            "unit": self.goal.unit,
            "value": self.value_gy,
            "reaches_goal": self.reaches_goal,
            "published_mean": self.published.mean_gy,
            "published_sd": self.published.sd_gy,
            "published_verified": self.published.verified,
            "reaches_published_mean": self.reaches_published_mean,
        }


CASES: dict[str, Tg119Case] = {
    case.name: case
    for case in (
        Tg119Case(
            "multitarget",
            "tg119_multitarget",
            (
                Size("three cylinders of 40 mm diameter and 40 mm length"),
                Size("stacked, their middles 40 mm apart"),
            ),
            (
                Published("PTV_Center", "D99%", 49.55, 1.62),
                Published("PTV_Center", "D10%", 54.55, 1.73),
                Published("PTV_Superior", "D99%", 25.16, 0.85),
                Published("PTV_Superior", "D10%", 34.12, 3.04),
                Published("PTV_Inferior", "D99%", 14.07, 1.85),
                Published("PTV_Inferior", "D10%", 24.18, 2.72),
            ),
        ),
        Tg119Case(
            "prostate",
            "tg119_prostate",
            (
                Size("CTV: ellipsoid of 40 x 26 x 65 mm, PTV 6 mm wider"),
                Size("rectum: cylinder of 15 mm, a third of its section in the PTV at mid-height"),
                Size("bladder: ellipsoid of 50 x 40 x 50 mm"),
            ),
            (
                Published("PTV", "D95%", 75.66, 0.21),
                Published("PTV", "D5%", 81.43, 1.56),
                Published("Rectum", "D30%", 65.36, 2.97),
                Published("Rectum", "D10%", 73.03, 1.50),
                Published("Bladder", "D30%", 43.94, 8.78),
                Published("Bladder", "D10%", 62.69, 8.15),
            ),
        ),
        Tg119Case(
            "headneck",
            "tg119_headneck",
            (
                Size("PTV 6 mm from the skin, 15 mm from the cord"),
                Size("parotids of 20 cc beside its upper half"),
            ),
            (
                Published("PTV", "D90%", 50.28, 0.58),
                Published("PTV", "D99%", 47.04, 0.52),
                Published("PTV", "D20%", 52.99, 0.93),
                Published("SpinalCord", "max", 37.41, 2.50),
                # The report gives one figure for both glands.
                Published("Parotid_L", "D50%", 17.98, 1.84),
                Published("Parotid_R", "D50%", 17.98, 1.84),
            ),
        ),
        Tg119Case(
            "cshape_easy",
            "tg119_cshape",
            (
                Size("C of 168 cc: radii 15 and 37 mm, 80 mm long", _MATRAD_C),
                Size("core: radius 10 mm, 100 mm long (31.4 cc; 29.7 cc in the open matRad copy)"),
            ),
            (
                Published("PTV", "D95%", 50.10, 0.17),
                Published("PTV", "D10%", 54.40, 0.52),
                Published("Core", "D10%", 22.00, 3.14),
            ),
        ),
        Tg119Case(
            "cshape_hard",
            "tg119_cshape",
            (
                Size("C of 168 cc: radii 15 and 37 mm, 80 mm long", _MATRAD_C),
                Size("core: radius 10 mm, 100 mm long (31.4 cc; 29.7 cc in the open matRad copy)"),
            ),
            (
                Published("PTV", "D95%", 50.11, 0.17),
                Published("PTV", "D10%", 57.02, 2.20),
                Published("Core", "D10%", 16.30, 3.07),
            ),
        ),
    )
}
