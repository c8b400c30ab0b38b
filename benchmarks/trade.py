"""Quality against MU, kept for docs/benchmarks.md, with what was asked beside what was measured.

    vmat-diffusion benchmark trade --mu-per-gy 250,300,350,500 --data D --tg119 --out DIR
    python benchmarks/trade.py DIR

Runs of patients and of TG-119 may be kept one after the other; rows of TG-119 that DIR does not hold stay.
Nothing of single patients of OpenKBP is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from computer import stamp
from figures import DOCS, load, load_file, save

from vmat_diffusion.benchmark.plans_tables import markdown_table
from vmat_diffusion.benchmark.tg119_cases import CASES
from vmat_diffusion.benchmark.trade_plan import limit_text
from vmat_diffusion.benchmark.trade_tables import (
    CURVE_PNG,
    SUMMARY_JSON,
    limit_rows,
    tg119_goal_rows,
    tg119_rows,
)
from vmat_diffusion.files import written_whole

COMMAND = "vmat-diffusion benchmark trade --mu-per-gy 250,300,350,500 --data DIR --tg119 --out DIR"
_NOT_MEASURED = "not measured"
_PLOTS = {"limits": "trade_openkbp.png", "tg119": "trade_tg119.png"}
_HARD = "cshape_hard"
# The figures of the hard C-shape: MU for 2 Gy, its core's goal, and what is asked of it there, Gy.
_CORE_MOST_MU, _CORE_GY, _AIM_MU, _AIM_GY, _LEAST_MU = 800.0, 16.3, 600.0, 18.0, 500.0
_OTHERS_MOST_MU = 650.0


def section() -> Iterator[str]:
    """The section of docs/benchmarks.md; none where nothing was measured."""
    kept = load("trade")
    if not kept:
        return
    yield ""
    yield "## Quality against MU"
    yield ""
    yield f"`{COMMAND}` plans each case at each limit of MU per Gy, else with the"
    yield "defaults of its sheet: the search alone, without the gate."
    yield "[Plans against clinical doses](plans_benchmark.md) says how doses are compared."
    yield ""
    yield from _asked(kept)
    if kept["limits"]:
        yield "### OpenKBP validation patients"
        yield ""
        yield "Coverage is matched to the clinical dose. Each cell is the median over patients (of organ"
        yield "means: over organs and patients), with the worst in brackets."
        yield ""
        yield markdown_table(*limit_rows(kept))
        yield ""
        yield from _plot("limits", "medians and quartiles of the patients")
    if kept["tg119"]:
        yield "### TG-119 at limits of MU"
        yield ""
        yield markdown_table(*tg119_rows(kept))
        yield ""
        yield markdown_table(*tg119_goal_rows(kept))
        yield ""
        yield from _plot("tg119", "organ means against the plan of the loosest limit")
    yield f"Measured on {kept['date']} on {kept['machine']}. {kept.get('remark', '')}".rstrip()


def _plot(part: str, words: str) -> Iterator[str]:
    name = _PLOTS[part]
    if (DOCS / "images" / name).is_file():
        yield f"![Quality against MU per Gy: {words}](images/{name})"
        yield ""


def _asked(kept: Mapping[str, Any]) -> Iterator[str]:
    """What was asked of the default limits, beside what was measured."""
    rows = [*_asked_of_patients(kept), *_asked_of_tg119(kept)]
    defaults = kept["default_mu_per_gy"]
    limits = "; ".join(f"{name} {limit_text(limit)} MU/Gy" for name, limit in defaults.items())
    yield "Asked and measured, each case at the limit that its sheet has by default"
    yield f"({limits}):"
    yield ""
    yield markdown_table(["asked", "measured", "reached"], rows)
    yield ""


def _row(asked: str, measured: str | None, reached: bool | None) -> list[str]:
    """A line of the table; without a measured figure it says so."""
    if measured is None or reached is None:
        return [asked, _NOT_MEASURED, ""]
    return [asked, measured, "yes" if reached else "**no**"]


def _asked_of_patients(kept: Mapping[str, Any]) -> list[list[str]]:
    """The figures asked of twenty validation patients."""
    default = limit_text(kept["default_mu_per_gy"].get("openkbp"))
    of_limit = next((one for one in kept["limits"] if one["limit"] == default), None)
    found = of_limit["figures"] if of_limit else {}

    def one(asked: str, key: str, which: str, low: float = float("-inf"), high: float = float("inf")) -> list:
        stats = found.get(key)
        if stats is None:
            return _row(asked, None, None)
        value = stats[which]
        return _row(asked, f"{value:.{stats['digits']}f}", low <= value <= high)

    patients = "patients" if of_limit is None else f"{of_limit['patients']} patients"
    d99 = "PTV_70 D99 difference"
    return [
        one(f"{patients}: MU/Gy at most 300 (median)", "mu_per_gy", "median", high=300.0),
        one("MU/Gy at most 350 (largest)", "mu_per_gy", "worst", high=350.0),
        one("MCS at least 0.20 (median)", "mcs", "median", low=0.20),
        # As `meets` of a delivery goal: positions in a plan file are rounded.
        one("leaf motion at most 3.75 mm/deg (largest)", "leaf_motion_mm_deg", "worst", high=3.75 * 1.001),
        one("two arcs at most 130 s of beam (longest)", "beam_on_s", "worst", high=130.0),
        one("no violation of the machine's limits", "violations", "worst", high=0.0),
        one("organ means at least 15 % below clinical", "organ_mean_change_percent", "median", high=-15.0),
        one("D99 of PTV_70 within 0.3 Gy of clinical (median)", d99, "median", low=-0.3),
        one("D99 of PTV_70 at most 1 Gy below clinical (each)", d99, "worst", low=-1.0),
        one("PTV_63: D95 within 0.3 Gy of clinical (median)", "PTV_63 D95 difference", "median", low=-0.3),
        one("PTV_56: D95 within 0.3 Gy of clinical (median)", "PTV_56 D95 difference", "median", low=-0.3),
        one(
            "criteria met at matched coverage at least 80 % (median)", "criteria_percent", "median", low=80.0
        ),
    ]


def _asked_of_tg119(kept: Mapping[str, Any]) -> list[list[str]]:
    """The figures asked of TG-119 and of the curve of the hard C-shape."""
    defaults = kept["default_mu_per_gy"]
    rows = {
        row["case"]: row
        for row in kept["tg119"]
        if row["limit"] == limit_text(defaults.get(row["case"])) and row["case"] in defaults
    }
    whole = set(CASES) <= set(rows)
    met = sum(row["reached"] != "no" for row in rows.values())
    mu = {name: row["mu_per_2_gy"] for name, row in rows.items() if name != _HARD}
    most = max(mu.values(), default=0.0)
    out = [
        _row(
            "TG-119: goals reached by all five", f"{met} of {len(rows)}" if whole else None, met == len(rows)
        ),
        _row(
            f"at most {_OTHERS_MOST_MU:g} MU for 2 Gy, but for the hard C-shape",
            f"{most:.0f}" if whole else None,
            most <= _OTHERS_MOST_MU,
        ),
    ]
    hard = [(row["mu_per_2_gy"], core) for row in kept["tg119"] if (core := _core_gy(row)) is not None]
    for mu_most, gy, word in ((_CORE_MOST_MU, _CORE_GY, ""), (_AIM_MU, _AIM_GY, " (aim)")):
        within = [(core, needed) for needed, core in hard if needed <= mu_most]
        text = f"hard C-shape: core D10 at most {gy:g} Gy at {mu_most:g} MU or fewer{word}"
        best = min(within, default=None)
        if best is None and hard:
            out.append([text, f"no plan with {mu_most:g} MU or fewer", "**no**"])
        else:
            shown = None if best is None else f"{best[0]:.1f} Gy at {best[1]:.0f} MU"
            out.append(_row(text, shown, None if best is None else best[0] <= gy))
    least = min((needed for needed, _ in hard), default=None)
    shown = None if least is None else f"down to {least:.0f} MU"
    out.append(
        _row(f"its curve down to {_LEAST_MU:g} MU", shown, None if least is None else least <= _LEAST_MU)
    )
    return out


def _core_gy(row: Mapping[str, Any]) -> float | None:
    """D10 of the core in a plan of the hard C-shape."""
    if row["case"] != _HARD:
        return None
    return next((g["value"] for name, g in row["goals"].items() if name.startswith("Core D10")), None)


def keep(found: Mapping[str, Any], remark: str = "") -> dict[str, Any]:
    """What is kept of the object that `benchmark trade --out` wrote, with earlier rows that it lacks."""
    before = load("trade")
    rows = {(row["case"], row["limit"]): row for row in (*before.get("tg119", ()), *found["tg119"])}
    order = list(CASES)
    kept = {
        **stamp(),
        "remark": remark or before.get("remark", ""),
        "default_mu_per_gy": {**before.get("default_mu_per_gy", {}), **found["default_mu_per_gy"]},
        "limits": found["limits"] or before.get("limits", []),
        "tg119": sorted(rows.values(), key=lambda row: (order.index(row["case"]), _size(row["limit"]))),
    }
    save("trade", kept)
    return kept


def _size(limit: str) -> float:
    return float("inf") if limit == "off" else float(limit)


def keep_plot(folder: Path, parts: Sequence[str]) -> None:
    """Keep the run's plot under the name of what it shows."""
    for part in parts:
        with written_whole(DOCS / "images" / _PLOTS[part]) as file:
            file.write_bytes((folder / CURVE_PNG).read_bytes())


def main() -> None:
    """Keep a run and print its section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder that the command wrote")
    parser.add_argument("--remark", default="", help="what a reader must know of this run")
    given = parser.parse_args()
    found = load_file(given.folder / SUMMARY_JSON)
    keep(found, given.remark)
    # A run of both has one plot with a row for each.
    keep_plot(given.folder, ["limits"] if found["limits"] else ["tg119"])
    print("\n".join(section()))


if __name__ == "__main__":
    main()
