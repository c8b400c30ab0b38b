"""Goals on how a plan is delivered: MU per Gy, leaf motion, open gaps, ragged apertures, beam-on time.

They stand in a goal sheet beside the goals on dose and are judged in the same words. See `docs/goals.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict, StrictFloat, StrictInt, StrictStr
from pydantic.dataclasses import dataclass as checked

from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.goal_words import (
    Comparator,
    Seen,
    Status,
    meets,
    require_consistent,
    sources_text,
)

Quantity = Literal["MU", "leaf motion", "open gap", "edge", "beam-on time"]

_STATEMENT = re.compile(r"([A-Za-z][A-Za-z -]*?)\s*(>=|<=|=)\s*(-?\d+(?:\.\d+)?)\s*(.*)")
# Positions in a plan file are whole hundredths of a mm, angles whole tenths of a degree: as much of a limit
# as `deliverability` leaves to them.
_ROUNDING = 1e-3
_PRIORITY = 2


@dataclass(frozen=True)
class DeliveryQuantity:
    """What a delivery goal limits: its unit as written in a sheet, from which side, and in words.

    `metric` is the field of `Complexity` that holds its value; `setting` that of a plan's settings that sets
    it for one plan, and `option` its spelling.
    """

    unit: str
    comparator: Comparator
    metric: str
    setting: str
    option: str
    words: str


QUANTITIES: Mapping[Quantity, DeliveryQuantity] = {
    "MU": DeliveryQuantity(
        "MU/Gy",
        "<=",
        "mu_per_gy",
        "mu_per_gy",
        "--mu-per-gy",
        "MU of a fraction for each Gy of its highest prescribed dose",
    ),
    "leaf motion": DeliveryQuantity(
        "mm/deg",
        "<=",
        "leaf_motion_mm_deg",
        "leaf_mm_per_deg",
        "--leaf-motion",
        "travel of the fastest leaf per degree of gantry, in any segment",
    ),
    "open gap": DeliveryQuantity(
        "mm",
        ">=",
        "smallest_gap_mm",
        "open_gap_mm",
        "--open-gap",
        "smallest gap of any pair that is open in the field",
    ),
    "edge": DeliveryQuantity(
        "/mm",
        "<=",
        "edge_per_mm",
        "edge_per_mm",
        "--edge",
        "length of leaf sides over the area of the aperture",
    ),
    "beam-on time": DeliveryQuantity(
        "s",
        "<=",
        "beam_on_s",
        "beam_on_s",
        "--beam-on-time",
        "time of all beams at the fastest delivery, without set-up",
    ),
}
# Sources of goals that no sheet states.
_DEFAULT, _ASKED = "default of `plan` where the goal sheet is silent", "asked for with"
# Other spellings of the units.
_UNITS = {"1/mm": "/mm", "mm/°": "mm/deg", "sec": "s"}


@dataclass(frozen=True)
class DeliveryGoal:
    """One goal on the delivery, such as `MU <= 300 MU/Gy`.

    `limit` and `variation`, the worst acceptable value, are in the quantity's unit. `priority`, `source`,
    `seen` and those of the variation are as of a `Goal`.
    """

    quantity: Quantity
    limit: float
    variation: float | None = None
    priority: int = _PRIORITY
    source: str = ""
    seen: Seen = ""
    variation_source: str = ""
    variation_seen: Seen = ""

    def __post_init__(self) -> None:
        for what, value in (("limit", self.limit), ("variation", self.variation)):
            if value is not None and not value > 0:
                raise GoalError(f"{self.statement}: the {what} {value:g} must be above 0")
        require_consistent(self, self.priority, self.limit, self.variation, self.comparator)

    @property
    def unit(self) -> str:
        """The unit of limit and variation."""
        return QUANTITIES[self.quantity].unit

    @property
    def comparator(self) -> Comparator:
        """From which side the quantity is limited."""
        return QUANTITIES[self.quantity].comparator

    @property
    def metric(self) -> str:
        """The field of `Complexity` that holds its value."""
        return QUANTITIES[self.quantity].metric

    @property
    def words(self) -> str:
        """What the quantity is."""
        return QUANTITIES[self.quantity].words

    def status(self, value: float) -> Status:
        """Whether a result meets the limit, only the variation, or neither."""
        if self._meets(value, self.limit):
            return "pass"
        return "acceptable" if self.variation is not None and self._meets(value, self.variation) else "fail"

    def _meets(self, value: float, limit: float) -> bool:
        at_least = self.comparator == ">="
        return meets(value, limit * (1 - _ROUNDING if at_least else 1 + _ROUNDING), at_least=at_least)

    def statement_of(self, value: float) -> str:
        """The goal with another limit, as it is written in a sheet."""
        return f"{self.quantity} {self.comparator} {value:g} {self.unit}"

    @property
    def statement(self) -> str:
        """The goal as it is written in a sheet."""
        return self.statement_of(self.limit)

    @property
    def of_run(self) -> bool:
        """Whether it comes from an option or a default of the run, not from a sheet."""
        return self.source == _DEFAULT or self.source.startswith(_ASKED)

    @property
    def source_text(self) -> str:
        """The sources of limit and variation, and how they were seen if not in print."""
        return "; ".join(sources_text(self.source, self.seen, self.variation_source, self.variation_seen))

    def __str__(self) -> str:
        return self.statement


@checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class DeliveryText:
    """An entry of a sheet's `[[delivery]]`, as written."""

    goal: StrictStr
    priority: StrictInt
    source: StrictStr = ""
    seen: Seen = ""
    variation: StrictFloat | None = None
    variation_source: StrictStr = ""
    variation_seen: Seen = ""


def parse_delivery(where: str, raw: DeliveryText) -> DeliveryGoal:
    """The goal that an entry states; GoalError names `where`, what is wrong and the remedy."""
    text = raw.goal.strip().replace("\u2265", ">=").replace("\u2264", "<=")
    match = _STATEMENT.fullmatch(text)
    if match is None:
        raise GoalError(f"{where}: cannot read {raw.goal!r}; write for example 'MU <= 300 MU/Gy'")
    spelled, comparator, number, unit = (part.strip() for part in match.groups())
    named = {_squeezed(name): name for name in QUANTITIES}
    quantity = named.get(_squeezed(spelled))
    if quantity is None:
        raise GoalError(
            f"{where}: {raw.goal!r} limits {spelled!r}, which is not known; known are {', '.join(QUANTITIES)}"
        )
    known = QUANTITIES[quantity]
    if comparator != known.comparator:
        raise GoalError(f"{where}: {raw.goal!r} needs {known.comparator}")
    if _UNITS.get(unit, unit) != known.unit:
        raise GoalError(f"{where}: {raw.goal!r} has the unit {unit!r}; {quantity} needs {known.unit}")
    if raw.variation is None and (raw.variation_source or raw.variation_seen):
        raise GoalError(f"{where}: a source of the variation is stated, but no variation; add it")
    try:
        return DeliveryGoal(
            quantity,
            float(number),
            raw.variation,
            raw.priority,
            raw.source,
            raw.seen,
            raw.variation_source,
            raw.variation_seen,
        )
    except GoalError as error:
        raise GoalError(f"{where}: {error}") from None


def _squeezed(name: str) -> str:
    return name.lower().replace("-", " ")


# MU per Gy that a plan is made with where its sheet says nothing: by site, else _OTHER_SITES. Chosen between
# published plans (head and neck 233 +- 21 MU/Gy, Eclipse and TrueBeam) and the 400 MU/Gy and more of a search
# without a limit.
_MU_PER_GY = {"head_neck": 300.0, "prostate": 280.0}
_STEREOTACTIC_BRAIN, _OTHER_SITES = 350.0, 300.0
# What a leaf of 22.5 mm/s travels while the gantry turns a degree at 6 deg/s; Eclipse's plans keep to it.
LEAF_MM_PER_DEG = 3.75


def default_delivery(site: str, *, stereotactic: bool) -> tuple[DeliveryGoal, ...]:
    """What a plan is asked for where its goal sheet says nothing of the quantity: MU and leaf motion."""
    brain = stereotactic and site == "brain"
    mu = _STEREOTACTIC_BRAIN if brain else _MU_PER_GY.get(site, _OTHER_SITES)
    return (
        DeliveryGoal("MU", mu, source=_DEFAULT, seen="chosen"),
        DeliveryGoal("leaf motion", LEAF_MM_PER_DEG, source=_DEFAULT, seen="chosen"),
    )


def limit_of(goals: Iterable[DeliveryGoal], quantity: Quantity) -> float | None:
    """The strictest limit of a quantity; None where there is none."""
    limits = [goal.limit for goal in goals if goal.quantity == quantity]
    if not limits:
        return None
    return max(limits) if QUANTITIES[quantity].comparator == ">=" else min(limits)


def asked_delivery(
    stated: Iterable[DeliveryGoal],
    defaults: Iterable[DeliveryGoal],
    asked: Mapping[Quantity, float | None],
) -> tuple[tuple[DeliveryGoal, ...], tuple[str, ...]]:
    """The goals that hold for a plan: those of the sheet, defaults where it is silent, and what was asked.

    `asked` has a limit for a quantity, or None for no limit: it goes before the sheet and keeps the priority
    that the sheet has. A must of the sheet holds beside what was asked. Also returns a sentence for each goal
    of the sheet that does not hold.
    """
    stated = tuple(stated)
    named = {goal.quantity for goal in stated}
    sheet = [*stated, *(goal for goal in defaults if goal.quantity not in named)]
    musts = [goal for goal in stated if goal.priority == 1]
    out = [goal for goal in sheet if goal.quantity not in asked or goal in musts]
    for quantity, limit in asked.items():
        if limit is not None:
            priority = max(min((g.priority for g in stated if g.quantity == quantity), default=_PRIORITY), 2)
            option = f"{_ASKED} {QUANTITIES[quantity].option}"
            out.append(DeliveryGoal(quantity, limit, priority=priority, source=option, seen="chosen"))
    order = list(QUANTITIES)
    remarks = tuple(
        f"the sheet's goal {goal} does not hold: {_instead(goal.quantity, asked[goal.quantity])}"
        for goal in stated
        if goal.quantity in asked and asked[goal.quantity] != goal.limit and goal not in musts
    )
    return tuple(sorted(out, key=lambda goal: order.index(goal.quantity))), remarks


def _instead(quantity: Quantity, limit: float | None) -> str:
    if limit is None:
        return "no limit was asked for"
    known = QUANTITIES[quantity]
    return f"{quantity} {known.comparator} {limit:g} {known.unit} was asked for"
