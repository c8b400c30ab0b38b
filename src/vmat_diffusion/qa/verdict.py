"""The outcome of one check, and the verdict that all checks of a plan make."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from vmat_diffusion.case import Case
from vmat_diffusion.errors import PlanError
from vmat_diffusion.evaluate.gamma import GammaResult
from vmat_diffusion.evaluate.goals import GoalResult
from vmat_diffusion.plan import Plan

if TYPE_CHECKING:
    from vmat_diffusion.qa.robustness_result import Robustness

_WARNINGS = "warnings"
# A value is decided where its limit is so many standard errors away: 95 %.
SIGMAS = 2.0
# Errors below this share of what a limit leaves change no decision that a clinic would make: 0.1 of 2 %.
_SMALL = 0.05
# The check that names limits looser than the shipped ones.
LOOSER_LIMITS = "limits of the gate"


class Outcome(Enum):
    """What a verdict says. A plan file is written for `PASSED` alone."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Check:
    """The outcome of one check; `value` and `limit` are in `unit`. Without a limit it is only reported.

    A check that could not be decided (`undecided`), as the independent dose is too noisy, has not passed.
    `error` is the standard error of the value, None where it has none or nothing depends on it; `needs` how
    many times the computing so far it takes until noise can carry the value across its limit no more.
    A check that `cautions` passed, but a person must read `why`: it lies between two limits. Checks of one
    kind have a `group`.
    """

    name: str
    passed: bool
    value: float | None
    limit: float | None
    unit: str
    why: str
    undecided: bool = False
    cautions: bool = False
    group: str = ""
    error: float | None = None
    needs: float = 1.0

    def __post_init__(self) -> None:
        if self.undecided and self.passed:
            raise ValueError(f"check {self.name} cannot have passed while it is undecided; choose one")

    @property
    def warns(self) -> bool:
        """Whether the plan may pass but a person must read `why`."""
        return self.passed and (self.cautions or (self.unit == _WARNINGS and bool(self.value)))

    @property
    def fails(self) -> bool:
        """Whether the check was decided against the plan."""
        return not self.passed and not self.undecided

    @property
    def word(self) -> str:
        """The outcome in one word: pass, fail, undecided, warning or reported."""
        if not self.passed:
            return "undecided" if self.undecided else "fail"
        if self.warns:
            return "warning"
        return "reported" if self.limit is None else "pass"

    def left_open(self, why: str) -> Check:
        """The same check as one that could not be decided, for this reason."""
        return replace(self, passed=False, undecided=True, why=f"{self.why}; {why}")

    def record(self) -> dict[str, Any]:
        """Plain data with the value rounded."""
        value = None if self.value is None else round(float(self.value), 4)
        return {
            "name": self.name,
            "group": self.group or None,
            "passed": bool(self.passed),
            "result": self.word,
            "value": value,
            "limit": self.limit,
            "error": None if self.error is None else round(float(self.error), 4),
            "unit": self.unit,
            "why": self.why,
        }


def bounded(
    name: str,
    value: float | None,
    limit: float,
    unit: str,
    why: str,
    *,
    error: float | None = None,
    least: bool = False,
) -> Check:
    """A check of a value against the most that its size may be, or the `least` that it may be.

    A value beyond the limit by less than two standard errors is undecided: that may be noise. It is decided
    where the errors are small beside the limit. None fails.
    """
    beyond = None if value is None else (limit - value if least else abs(value) - limit)
    passed = beyond is not None and beyond <= 0.0
    check = Check(name, passed, value, limit, unit, why, error=error)
    if beyond is None or error is None:
        return check
    check = replace(check, needs=computing_needed(beyond, error, 100.0 - limit if least else limit))
    # What more computing would not decide is decided.
    if passed or beyond > SIGMAS * error or check.needs <= 1.0:
        return check
    return check.left_open(f"beyond the limit by less than {SIGMAS:g} standard errors of {error:.2g} {unit}")


def computing_needed(apart: ArrayLike, error: ArrayLike, room: float) -> float:
    """How many times the computing so far it takes until values lie two standard errors from their limit.

    1 where they do, and where the errors are small beside the `room` that the limit leaves: what lies that
    near to it may fall on either side.
    """
    margin = SIGMAS * np.asarray(error, np.float64)
    nearest = np.maximum(np.abs(apart), max(_SMALL * abs(room), 1e-9))
    # An error that is no number says nothing of how certain a value is.
    return float(np.nan_to_num(np.max((margin / nearest) ** 2, initial=1.0), nan=np.inf))


def warning(name: str, sentences: Sequence[str], otherwise: str) -> Check:
    """A check that every plan passes: it says what is unusual, or `otherwise` where nothing is."""
    why = "; ".join(sentences) or otherwise
    return Check(name, True, float(len(sentences)), None, _WARNINGS, why)


@dataclass(frozen=True, eq=False)
class Verdict:
    """All checks of one plan; `gamma` and `results` (goals on the independent dose) where computed.

    `correctable`: the plan fails only because the two engines disagree, and they disagree no more than a
    new optimisation can correct. `fingerprint` is that of the plan and case judged. `robustness` is what
    small errors of the linac do to the dose, where it was asked for.
    """

    checks: tuple[Check, ...]
    gamma: GammaResult | None = None
    results: tuple[GoalResult, ...] = ()
    correctable: bool = False
    fingerprint: str = ""
    robustness: Robustness | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that were decided against the plan."""
        return tuple(check for check in self.checks if check.fails)

    @property
    def undecided(self) -> tuple[Check, ...]:
        """The checks that could not be decided."""
        return tuple(check for check in self.checks if check.undecided)

    @property
    def outcome(self) -> Outcome:
        """FAILED if a check failed, else INCONCLUSIVE if one is undecided, else PASSED."""
        if self.failed:
            return Outcome.FAILED
        return Outcome.PASSED if self.passed else Outcome.INCONCLUSIVE

    @property
    def looser(self) -> str:
        """Which limits were looser than the shipped ones, a sentence; empty where none was."""
        return next((c.why for c in self.checks if c.name == LOOSER_LIMITS and c.warns), "")

    def summary(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "passed": self.passed,
            "outcome": self.outcome.value,
            "checks": [check.record() for check in self.checks],
            "gamma": self.gamma.summary() if self.gamma else None,
        }

    def require_passed(self, plan: Plan, case: Case) -> None:
        """Raise PlanError unless this verdict lets this plan out for this case."""
        if self.fingerprint != fingerprint(plan, case):
            raise PlanError("the verdict is on another plan or another case; judge this plan on this case")
        if not self.passed:
            names = ", ".join(check.name for check in self.failed or self.undecided)
            if self.outcome is Outcome.INCONCLUSIVE:
                raise PlanError(f"the gate could not decide on the plan ({names}); do what its checks say")
            raise PlanError(f"the plan did not pass the gate ({names}); plan the case anew")


def fingerprint(plan: Plan, case: Case) -> str:
    """SHA-256 of what a plan delivers and of the images and structures that it was judged on."""
    source = case.source
    facts: list[object] = [
        *(case.id, source.study_uid, source.frame_of_reference_uid, source.structure_set_uid),
        *(plan.machine, plan.patient_position, plan.fractions, plan.dose_rate_mu_min),
        *(f"{float(v)!r}" for v in plan.isocenter_mm),
    ]
    digest = hashlib.sha256()
    for arc in plan.arcs:
        facts += [arc.number, f"{float(arc.collimator_deg)!r} {float(arc.couch_deg)!r}", arc.leaves_mm.shape]
        for values in (arc.gantry_deg, arc.leaves_mm, arc.jaws_mm, arc.mu):
            digest.update(values.tobytes())
    digest.update("|".join(map(str, facts)).encode())
    return digest.hexdigest()
