"""What can be measured on a dose within a structure, as physicists write it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.dvh import Dvh

Kind = Literal[
    "D%",
    "Dcc",
    "V",
    "CV",
    "mean",
    "max",
    "min",
    "meanhot",
    "meancold",
    "gEUD",
    "conformity",
    "homogeneity",
    "R",
    "Dcm",
]
Unit = Literal["Gy", "%", "cc", ""]

_NUMBER = r"(\d+(?:\.\d+)?)"
_DOSE_AT = re.compile(rf"D{_NUMBER}(%|cc|cm)")
_VOLUME_AT = re.compile(rf"(V|CV){_NUMBER}(Gy|%)")
_MEAN_OF = re.compile(rf"(meanhot|meancold){_NUMBER}(%|cc)")
_SPILLAGE = re.compile(rf"R{_NUMBER}%")
_RESULT_UNIT = re.compile(r"(.+)\[(Gy|%|cc)\]")
_GEUD = re.compile(r"gEUD(-?\d+(?:\.\d+)?)")
_CONFORMITY = re.compile(rf"conformity(?:{_NUMBER}%)?")
_CONFORMITY_LEVEL_PERCENT = 95.0
# The unit that a limit may have, the usual one first.
_UNITS: dict[str, tuple[Unit, ...]] = {
    **dict.fromkeys(("D%", "Dcc", "mean", "max", "min", "meanhot", "meancold", "gEUD"), ("Gy", "%")),
    **dict.fromkeys(("V", "CV"), ("%", "cc")),
    "Dcm": ("%", "Gy"),
    **dict.fromkeys(("conformity", "homogeneity", "R"), ("",)),
}
# Metrics whose result is a dose within the structure.
_DOSE_KINDS = ("D%", "Dcc", "mean", "max", "min", "meanhot", "meancold", "gEUD")
# Up to this volume a Dcc metric is a near-maximum: a goal on it concerns every voxel above the limit.
_NEAR_MAXIMUM_CC = 0.2
# A structure may be smaller than any voxel volume that is meant in earnest; only keeps a division finite.
_LEAST_VOLUME_CC = 1e-6


@dataclass(frozen=True)
class Bound:
    """A point of the cumulative histogram that a goal bounds: a dose level and a volume.

    `D95% >= 66.5 Gy` says that at least 95 % receive 66.5 Gy, `V20Gy <= 30 %` that at most 30 % receive
    20 Gy, `max` that at most 0 % and `min` that at least 100 % do. `volume` is in `unit`. A `spared` volume
    is what stays below the level: `CV15Gy >= 700 cc` says that all but 700 cc may receive 15 Gy.
    """

    level_gy: float
    volume: float
    unit: Literal["%", "cc"]
    spared: bool = False

    def share(self, structure_cc: float) -> float:
        """The volume at the level as a share, 0 to 1, of a structure of `structure_cc`."""
        share = self.volume / 100
        if self.unit == "cc":
            share = min(self.volume / max(structure_cc, _LEAST_VOLUME_CC), 1.0)
        return 1.0 - share if self.spared else share

    def voxels(self, count: int, voxel_cc: float) -> float:
        """The volume at the level in voxels of `voxel_cc`, for a structure of `count` voxels."""
        voxels = self.volume / 100 * count if self.unit == "%" else self.volume / voxel_cc
        return max(count - voxels, 0.0) if self.spared else voxels


@dataclass(frozen=True)
class Metric:
    """What is measured on a structure.

    `value` is the volume of a D or a partial mean, the dose of a V or CV, the isodose of conformity or R,
    the distance of a Dcm, in `value_unit`, or the exponent of a gEUD. Percent of dose means percent of the
    structure's own prescription, for a dose in percent on a structure without one of the sheet's highest.
    `result_unit` is Gy, %, cc or "" for an index.
    """

    kind: Kind
    value: float | None = None
    value_unit: Literal["%", "cc", "cm", "Gy"] | None = None
    result_unit: Unit = "Gy"

    @classmethod
    def parse(cls, text: str) -> Metric:
        """The metric of a text such as `D95%`, with its result's unit in brackets where it is not the usual
        one: `V20Gy[cc]`, `D0.03cc[%]`. GoalError for a text that is none; see the table in `docs/goals.md`.
        """
        bracket = _RESULT_UNIT.fullmatch(text)
        metric = cls._plain(bracket[1] if bracket else text)
        if metric is not None and (bracket is None or bracket[2] in _UNITS[metric.kind]):
            return replace(metric, result_unit=bracket[2]) if bracket else metric  # type: ignore[arg-type]
        raise GoalError(
            f"metric {text!r} is not known; write D95%, D0.03cc, V20Gy, V20Gy[cc], V95%, CV15Gy, mean, max, "
            "min, meanhot95%, meancold5cc, gEUD8, conformity, homogeneity, R50% or D2cm"
        )

    @classmethod
    def _plain(cls, text: str) -> Metric | None:
        """The metric of a text without brackets; None for a text that is none."""
        kind, value, unit = _parts(text)
        if kind is None:
            return None
        return cls(kind, value, unit, _UNITS[kind][0])  # type: ignore[arg-type]

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units that a limit on it may have, the usual one first."""
        return _UNITS[self.kind]

    def in_unit(self, unit: str) -> Metric | None:
        """The metric with another unit of its result; None where it cannot have that unit."""
        return replace(self, result_unit=unit) if unit in self.units else None  # type: ignore[arg-type]

    @property
    def needs_prescription(self) -> bool:
        """Whether the metric is stated relative to the structure's own prescription."""
        relative = self.kind in ("V", "CV") and self.value_unit == "%"
        return relative or self.kind in ("conformity", "R", "Dcm")

    @property
    def is_dose_in_percent(self) -> bool:
        """Whether the result is a dose in percent of the prescription."""
        return self.result_unit == "%" and (self.kind in _DOSE_KINDS or self.kind == "Dcm")

    @property
    def takes_eqd2(self) -> bool:
        """Whether a goal on it may be stated as a dose in fractions of 2 Gy."""
        if self.kind in ("V", "CV"):
            return self.value_unit == "Gy"
        return self.kind in _DOSE_KINDS and self.result_unit == "Gy"

    @property
    def is_near_maximum(self) -> bool:
        """Whether the metric is on the hottest spot of a structure: max, or a D of at most 0.2 cc."""
        return self.kind == "max" or (
            self.kind == "Dcc" and self.value is not None and self.value <= _NEAR_MAXIMUM_CC
        )

    def level_gy(self, prescription_gy: float | None) -> float | None:
        """The dose at which a V, CV, R or conformity metric is read; None for others.

        None too where it is a percentage and the structure has no prescription.
        """
        if self.kind not in ("V", "CV", "R", "conformity") or self.value is None:
            return None
        if self.value_unit == "Gy":
            return self.value
        return None if prescription_gy is None else self.value * (prescription_gy / 100)

    def bound(self, limit: float, prescription_gy: float | None = None) -> Bound | None:
        """What a limit on this metric says about the histogram: the dose level and the volume.

        `limit` is in the metric's result unit; `prescription_gy` is what 100 % of dose means. None where the
        metric bounds no single point of the histogram (a mean, gEUD, an index), or is a percentage of a
        prescription that is not given.
        """
        if self.is_dose_in_percent:
            if prescription_gy is None:
                return None
            limit = limit * prescription_gy / 100
        if self.kind in ("max", "min"):
            return Bound(limit, 0.0 if self.kind == "max" else 100.0, "%")
        if self.kind in ("D%", "Dcc") and self.value is not None:
            return Bound(limit, self.value, "%" if self.kind == "D%" else "cc")
        level = self.level_gy(prescription_gy)
        if self.kind in ("V", "CV") and level is not None:
            unit: Literal["%", "cc"] = "cc" if self.result_unit == "cc" else "%"
            return Bound(level, limit, unit, spared=self.kind == "CV")
        return None

    def __str__(self) -> str:
        usual = self.result_unit == self.units[0]
        return self.plain_text + ("" if usual else f"[{self.result_unit}]")

    @property
    def plain_text(self) -> str:
        """The metric without the unit of its result."""
        if self.kind in ("D%", "Dcc", "Dcm"):
            return f"D{self.value:g}{self.value_unit}"
        if self.value is None:
            return self.kind
        return f"{self.kind}{self.value:g}{self.value_unit or ''}"


def _parts(text: str) -> tuple[Kind | None, float | None, str | None]:
    """The kind, the value and its unit of a metric's text without brackets; a kind of None for no metric."""
    if text in ("mean", "max", "min", "homogeneity"):
        return text, None, None  # type: ignore[return-value]
    if match := _CONFORMITY.fullmatch(text):
        level = float(match[1] or _CONFORMITY_LEVEL_PERCENT)
        if level > 0:
            return "conformity", level, "%"
    if (match := _SPILLAGE.fullmatch(text)) and float(match[1]) > 0:
        return "R", float(match[1]), "%"
    if (match := _GEUD.fullmatch(text)) and float(match[1]):
        return "gEUD", float(match[1]), None
    if (match := _DOSE_AT.fullmatch(text)) and (match[2] != "%" or float(match[1]) <= 100):
        return f"D{match[2]}", float(match[1]), match[2]  # type: ignore[return-value]
    if match := _VOLUME_AT.fullmatch(text):
        return match[1], float(match[2]), match[3]  # type: ignore[return-value]
    if (match := _MEAN_OF.fullmatch(text)) and 0 < float(match[2]) <= (100 if match[3] == "%" else math.inf):
        return match[1], float(match[2]), match[3]  # type: ignore[return-value]
    return None, None, None


def paddick(dvh: Dvh, level_gy: float, isodose_cc: float) -> float:
    """Conformity of an isodose to a target: (TV within PIV)^2 / (TV * PIV); 1 is ideal.

    `isodose_cc` is the body's volume at or above `level_gy`. Paddick, J Neurosurg 93 Suppl 3:219
    (2000). 0 where nothing reaches the level.
    """
    inside = float(dvh.volume_at_dose_cc(level_gy))
    return inside**2 / (dvh.volume_cc * isodose_cc) if isodose_cc > 0 else 0.0


def homogeneity(dvh: Dvh) -> float:
    """Homogeneity index (D2% - D98%) / D50%, 0 is ideal; ICRU Report 83 (2010), eq. 3-3. NaN without dose."""
    median = dvh.dose_at_percent_gy(50)
    spread = dvh.dose_at_percent_gy(2) - dvh.dose_at_percent_gy(98)
    return spread / median if median > 0 else math.nan


def histogram_value(metric: Metric, dvh: Dvh, level_gy: float | None = None) -> float | None:
    """A metric of a structure's histogram, in its result unit; `level_gy` is the dose of a V or CV metric.

    None for what no histogram alone says: a dose in percent of a prescription, conformity, homogeneity, R,
    Dcm, and a V metric without a level.
    """
    if metric.is_dose_in_percent:
        return None
    if metric.kind in ("mean", "max", "min"):
        return {"mean": dvh.mean_gy, "max": dvh.max_gy, "min": dvh.min_gy}[metric.kind]
    if metric.value is None:
        return None
    if metric.kind == "D%":
        return dvh.dose_at_percent_gy(metric.value)
    if metric.kind == "Dcc":
        return dvh.dose_at_cc_gy(metric.value)
    if metric.kind == "gEUD":
        return dvh.geud_gy(metric.value)
    if metric.kind in ("meanhot", "meancold"):
        cc = metric.value if metric.value_unit == "cc" else metric.value / 100 * dvh.volume_cc
        return dvh.mean_of_hottest_gy(cc) if metric.kind == "meanhot" else dvh.mean_of_coldest_gy(cc)
    if metric.kind in ("V", "CV") and level_gy is not None:
        whole = dvh.volume_cc if metric.result_unit == "cc" else 100.0
        at = dvh.volume_at_dose_cc if metric.result_unit == "cc" else dvh.volume_at_dose_percent
        volume = float(at(level_gy))
        return volume if metric.kind == "V" else whole - volume
    return None
