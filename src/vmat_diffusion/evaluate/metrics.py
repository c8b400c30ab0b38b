"""What can be measured on a dose within a structure, as physicists write it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.dvh import Dvh

Kind = Literal["D%", "Dcc", "V", "mean", "max", "min", "gEUD", "conformity", "homogeneity"]

_NUMBER = r"(\d+(?:\.\d+)?)"
_DOSE_AT = re.compile(rf"D{_NUMBER}(%|cc)")
_VOLUME_AT = re.compile(rf"V{_NUMBER}(Gy|%)(?:\[(%|cc)\])?")
_GEUD = re.compile(r"gEUD(-?\d+(?:\.\d+)?)")
_CONFORMITY = re.compile(rf"conformity(?:{_NUMBER}%)?")
_CONFORMITY_LEVEL_PERCENT = 95.0
# Up to this volume a Dcc metric is a near-maximum: a goal on it concerns every voxel above the limit.
_NEAR_MAXIMUM_CC = 0.2
# A structure may be smaller than any voxel volume that is meant in earnest; only keeps a division finite.
_LEAST_VOLUME_CC = 1e-6


@dataclass(frozen=True)
class Bound:
    """A point of the cumulative histogram that a goal bounds: a dose level and a volume.

    `D95% >= 66.5 Gy` says that at least 95 % receive 66.5 Gy, `V20Gy <= 30 %` that at most 30 % receive
    20 Gy, `max` that at most 0 % and `min` that at least 100 % do. `volume` is in `unit`.
    """

    level_gy: float
    volume: float
    unit: Literal["%", "cc"]

    def share(self, structure_cc: float) -> float:
        """The volume as a share, 0 to 1, of a structure of `structure_cc`."""
        if self.unit == "%":
            return self.volume / 100
        return min(self.volume / max(structure_cc, _LEAST_VOLUME_CC), 1.0)

    def voxels(self, count: int, voxel_cc: float) -> float:
        """The volume in voxels of `voxel_cc`, for a structure of `count` voxels."""
        return self.volume / 100 * count if self.unit == "%" else self.volume / voxel_cc


@dataclass(frozen=True)
class Metric:
    """What is measured on a structure.

    `value` is the volume of a D metric, the dose of a V metric or the isodose of conformity, in
    `value_unit`, or the exponent of a gEUD; percent of dose means percent of the structure's own
    prescription. `result_unit` is Gy, %, cc or "" for an index.
    """

    kind: Kind
    value: float | None = None
    value_unit: Literal["%", "cc", "Gy"] | None = None
    result_unit: Literal["Gy", "%", "cc", ""] = "Gy"

    @classmethod
    def parse(cls, text: str) -> Metric:
        """The metric of `D95%`, `D0.03cc`, `V20Gy`, `V20Gy[cc]`, `V95%`, `mean`, `max`, `min`, `gEUD8`,
        `conformity`, `conformity100%` or `homogeneity`; GoalError otherwise.
        """
        if text in ("mean", "max", "min"):
            return cls(text)  # type: ignore[arg-type]
        if text == "homogeneity":
            return cls("homogeneity", None, None, "")
        if match := _CONFORMITY.fullmatch(text):
            level = float(match[1] or _CONFORMITY_LEVEL_PERCENT)
            if level > 0:
                return cls("conformity", level, "%", "")
        if (match := _GEUD.fullmatch(text)) and float(match[1]):
            return cls("gEUD", float(match[1]))
        if match := _DOSE_AT.fullmatch(text):
            percent = match[2] == "%"
            if not percent or float(match[1]) <= 100:
                return cls("D%" if percent else "Dcc", float(match[1]), match[2], "Gy")  # type: ignore[arg-type]
        if match := _VOLUME_AT.fullmatch(text):
            return cls("V", float(match[1]), match[2], match[3] or "%")  # type: ignore[arg-type]
        raise GoalError(
            f"metric {text!r} is not known; write D95%, D0.03cc, V20Gy, V20Gy[cc], V95%, mean, max, min, "
            "gEUD8, conformity or homogeneity"
        )

    @property
    def needs_prescription(self) -> bool:
        """Whether the metric is stated relative to the structure's own prescription."""
        return self.kind == "conformity" or (self.kind == "V" and self.value_unit == "%")

    @property
    def is_near_maximum(self) -> bool:
        """Whether the metric is on the hottest spot of a structure: max, or a D of at most 0.2 cc."""
        return self.kind == "max" or (
            self.kind == "Dcc" and self.value is not None and self.value <= _NEAR_MAXIMUM_CC
        )

    def level_gy(self, prescription_gy: float | None) -> float | None:
        """The dose at which a V or conformity metric is read; None for others.

        None too where it is a percentage and the structure has no prescription.
        """
        if self.kind not in ("V", "conformity") or self.value is None:
            return None
        if self.value_unit == "Gy":
            return self.value
        return None if prescription_gy is None else self.value * (prescription_gy / 100)

    def bound(self, limit: float, prescription_gy: float | None = None) -> Bound | None:
        """What a limit on this metric says about the histogram: the dose level and the volume.

        `limit` is in the metric's result unit; `prescription_gy` is the structure's own. None where the
        metric bounds no single point of the histogram (mean, gEUD, conformity, homogeneity), or is a
        percentage of a prescription that the structure does not have.
        """
        if self.kind in ("max", "min"):
            return Bound(limit, 0.0 if self.kind == "max" else 100.0, "%")
        if self.kind in ("D%", "Dcc") and self.value is not None:
            return Bound(limit, self.value, "%" if self.kind == "D%" else "cc")
        level = self.level_gy(prescription_gy)
        if self.kind == "V" and level is not None:
            return Bound(level, limit, "cc" if self.result_unit == "cc" else "%")
        return None

    def __str__(self) -> str:
        if self.kind == "V":
            return f"V{self.value:g}{self.value_unit}" + ("[cc]" if self.result_unit == "cc" else "")
        if self.kind in ("D%", "Dcc"):
            return f"D{self.value:g}{self.value_unit}"
        if self.kind == "gEUD":
            return f"gEUD{self.value:g}"
        return self.kind if self.value is None else f"{self.kind}{self.value:g}%"


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
    """A metric of a structure's histogram, in its result unit; `level_gy` is the dose of a V metric.

    None for what no histogram alone says: conformity, homogeneity, and a V metric without a level.
    """
    if metric.kind == "D%" and metric.value is not None:
        return dvh.dose_at_percent_gy(metric.value)
    if metric.kind == "Dcc" and metric.value is not None:
        return dvh.dose_at_cc_gy(metric.value)
    if metric.kind == "gEUD" and metric.value is not None:
        return dvh.geud_gy(metric.value)
    if metric.kind == "V" and level_gy is not None:
        at = dvh.volume_at_dose_cc if metric.result_unit == "cc" else dvh.volume_at_dose_percent
        return float(at(level_gy))
    return {"mean": dvh.mean_gy, "max": dvh.max_gy, "min": dvh.min_gy}.get(metric.kind)
