"""What published and known VMAT plans have of each metric of complexity, and what lies outside.

One table for the report, the gate, `check` and `qa`. Only the side on which a plan is more complex than
those is named: no limit has been shown to separate plans that fail a measurement from others
(`docs/complexity.md`).
"""

from __future__ import annotations

from dataclasses import dataclass

from vmat_diffusion.evaluate.complexity.metrics import Complexity
from vmat_diffusion.evaluate.goal_words import Seen, source_text


@dataclass(frozen=True)
class PublishedValues:
    """The title of a metric, and published values of VMAT plans; empty where none is known."""

    title: str
    unit: str
    values: str


_PELVIS = "217 prostate plans, medians of three field sizes (1)"
PUBLISHED: dict[str, PublishedValues] = {
    "mcs": PublishedValues(
        "Modulation complexity score", "", f"0.21 to 0.23: {_PELVIS}; 0.32 to 0.38: tongue (2)"
    ),
    "mean_area_cm2": PublishedValues(
        "Mean aperture area", "cm²", f"23 to 60: {_PELVIS}; 56 to 66: nasopharynx, means (3)"
    ),
    "edge_per_mm": PublishedValues(
        "Edge metric", "1/mm", "0.05 and 0.11: the two examples of the authors' script (4)"
    ),
    "small_5mm": PublishedValues("Small apertures, up to 5 mm", "", f"0.15 to 0.21: {_PELVIS}"),
    "small_10mm": PublishedValues("Small apertures, up to 10 mm", "", ""),
    "smallest_gap_mm": PublishedValues("Smallest open gap", "mm", ""),
    "mean_gap_mm": PublishedValues("Mean open gap", "mm", ""),
    "leaf_travel_mm": PublishedValues("Leaf travel per beam", "mm", f"180 to 390: {_PELVIS}"),
    "leaf_travel_mm_deg": PublishedValues("Leaf travel per degree", "mm/°", ""),
    "leaf_motion_mm_deg": PublishedValues("Fastest leaf per degree", "mm/°", ""),
    "mu_per_gy": PublishedValues("MU per Gy of the prescription", "MU/Gy", "203 to 225: tongue (2)"),
    "beam_on_s": PublishedValues("Beam-on time", "s", ""),
    "mean_dose_rate_mu_min": PublishedValues("Mean dose rate", "MU/min", ""),
    "mean_gantry_speed_deg_s": PublishedValues("Mean gantry speed", "°/s", ""),
}
SOURCES = (
    "(1) Kamperis, thesis, ekamperi.github.io/mrm_thesis, table of results",
    "(2) medRxiv 2025.08.08.25332884, 20 patients, by setting of the aperture shape controller",
    "(3) BMC Cancer 21:261 (2021), two linacs",
    "(4) github.com/umro/Complexity, vmat.csv",
)


@dataclass(frozen=True)
class MetricRange:
    """The values of a metric in plans of others, at a `site` or, where it is "", at any.

    Beyond `most`, or below `least`, a plan is more complex than those; None where that side is not.
    """

    metric: str
    site: str
    least: float | None
    most: float | None
    source: str
    seen: Seen

    @property
    def text(self) -> str:
        """`at most 275 MU/Gy (head and neck)`."""
        side, value = ("at most", self.most) if self.most is not None else ("at least", self.least)
        where = f" ({self.site.replace('_', ' ')})" if self.site else ""
        return f"{side} {value:g} {PUBLISHED[self.metric].unit}".rstrip() + where

    @property
    def source_text(self) -> str:
        """Its source, and how that was seen if not in print."""
        return source_text(self.source, self.seen)

    def outside(self, value: float) -> bool:
        """Whether a plan with this value is more complex than the plans of the range."""
        return (self.most is not None and value > self.most) or (
            self.least is not None and value < self.least
        )


_FILES = "five plan files of Eclipse (two), Pinnacle, Monaco and Brainlab, measured by this program"
RANGES = (
    MetricRange(
        "mu_per_gy",
        "head_neck",
        None,
        275.0,
        "233 +- 21 MU/Gy, mean and twice the deviation: 50 patients, 70/60/54 Gy, Eclipse and TrueBeam",
        "practice",
    ),
    MetricRange(
        "mu_per_gy",
        "",
        None,
        400.0,
        "a third above the most of the plans known here: 301 MU/Gy, Eclipse's C-shape of TG-119; published "
        "are 203 to 225 (tongue) and 258 (endometrium)",
        "chosen",
    ),
    MetricRange(
        "mcs",
        "",
        0.14,
        None,
        f"0.14 to 0.30 in {_FILES}; 0.21 to 0.38 published (docs/complexity.md)",
        "practice",
    ),
    MetricRange(
        "edge_per_mm",
        "",
        None,
        0.13,
        f"0.088 to 0.126 in {_FILES}; 0.047 and 0.106 in the examples of the authors' script",
        "practice",
    ),
    MetricRange("small_10mm", "", None, 0.3, f"0.17 to 0.29 in {_FILES}", "practice"),
    MetricRange(
        "leaf_motion_mm_deg",
        "",
        None,
        5.0,
        "the gamma of measured plans fell from 98 to 80 % as the limit rose from 3 to 20 mm/deg, and above "
        "5 mm/deg accuracy is lost (Chen, Med Phys 38, 2011, in lecture slides); Eclipse has 3.75",
        "recalled",
    ),
)


def ranges_for(site: str = "") -> tuple[MetricRange, ...]:
    """One range for each metric that has any: that of the site, else the one for any site."""
    own = {r.metric: r for r in RANGES if r.site == ""}
    own |= {r.metric: r for r in RANGES if r.site == site and site}
    return tuple(own.values())


def outside_ranges(found: Complexity, site: str = "") -> tuple[str, ...]:
    """A sentence for each metric by which a plan is more complex than those of others."""
    out = []
    for known in ranges_for(site):
        value = getattr(found, known.metric)
        if value is not None and found.mean_dose_rate_mu_min > 0 and known.outside(float(value)):
            title, unit = PUBLISHED[known.metric].title, PUBLISHED[known.metric].unit
            out.append(f"{title} {value:.3g} {unit}".rstrip() + f" lies outside {known.text}")
    return tuple(out)
