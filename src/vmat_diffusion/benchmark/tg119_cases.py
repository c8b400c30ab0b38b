"""The five planning cases of AAPM TG-119, and how a plan stands beside the institutions of the report.

Ezzell et al., IMRT commissioning: multiple institution planning and dosimetry comparisons, Med Phys
36:5359 (2009). Geometries are in `phantom`, goals in the shipped sheets. The means and standard deviations
here are recalled and have not been compared with the report's tables; docs/tg119.md says what has been.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vmat_diffusion.evaluate.goals import Goal, GoalSheet, load_goals

SOURCE = "Ezzell et al., Med Phys 36:5359 (2009), AAPM TG-119 (recalled, not compared with its text)"


@dataclass(frozen=True)
class Published:
    """What the institutions of the report reached for one goal: mean and standard deviation, Gy."""

    structure: str
    metric: str
    mean_gy: float
    sd_gy: float


@dataclass(frozen=True)
class Tg119Case:
    """One of the report's planning problems: a phantom, a goal sheet and what was published for each goal."""

    name: str
    phantom: str
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
    def needed_gy(self) -> float:
        """What a plan must reach: the goal, or the published mean where that misses it."""
        return self.goal.limit if self.published_reached else self.published.mean_gy

    @property
    def reached(self) -> bool:
        """Whether the plan reaches what it must."""
        needed = replace(self.goal, limit=self.needed_gy, variation=None)
        return self.value_gy is not None and needed.status(self.value_gy) == "pass"

    def record(self) -> dict[str, Any]:
        """Plain data; doses in Gy."""
        return {
            "structure": self.goal.structure,
            "goal": self.goal.statement,
            "limit": self.goal.limit,
            "unit": self.goal.unit,
            "value": self.value_gy,
            "published_mean": self.published.mean_gy,
            "published_sd": self.published.sd_gy,
            "needed": self.needed_gy,
            "reached": self.reached,
        }


CASES: dict[str, Tg119Case] = {
    case.name: case
    for case in (
        Tg119Case(
            "multitarget",
            "tg119_multitarget",
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
                Published("PTV", "D95%", 50.10, 0.17),
                Published("PTV", "D10%", 54.40, 0.52),
                Published("Core", "D10%", 22.00, 3.14),
            ),
        ),
        Tg119Case(
            "cshape_hard",
            "tg119_cshape",
            (
                Published("PTV", "D95%", 50.11, 0.17),
                Published("PTV", "D10%", 57.02, 2.20),
                Published("Core", "D10%", 16.30, 3.07),
            ),
        ),
    )
}
