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
