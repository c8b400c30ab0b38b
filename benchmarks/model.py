"""The lines of docs/benchmarks.md about the dose model: scores, parts, plans that aim at it.

    python benchmarks/model.py FOUND      # keep the figures of `benchmark openkbp --out FOUND`

Ablation and priors have scripts of their own. Nothing of single patients of OpenKBP is kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ablation
import priors
from computer import stamp

from vmat_diffusion.files import written_whole

DOCS = Path(__file__).resolve().parents[1] / "docs"
FIGURES = DOCS / "benchmarks_openkbp.json"
_LEFT_OUT = ("by_patient", "left_out")


def interval(found: Mapping[str, Any]) -> str:
    """A value with its 95 % interval."""
    low, high = found["low"], found["high"]
    between = "" if low is None else f" ({low:.2f} to {high:.2f})"
    return f"{found['value']:.2f}{between}"


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about the dose model; none without figures."""
    if FIGURES.is_file():
        yield from _scores(json.loads(FIGURES.read_text(encoding="utf-8")))
    if ablation.FIGURES.is_file():
        yield from _parts(json.loads(ablation.FIGURES.read_text(encoding="utf-8")))
    if priors.FIGURES.is_file():
        yield from _plans(json.loads(priors.FIGURES.read_text(encoding="utf-8")))


def _scores(found: Mapping[str, Any]) -> Iterator[str]:
    asked = found["settings"]
    yield ""
    yield "## Dose model on OpenKBP"
    yield ""
    drawn = f"--samples {asked['samples']} --steps {asked['steps']}"
    yield f"`benchmark openkbp --split {asked['split']} {drawn}`, weights `{found['weights']['name']}`,"
    yield f"{found['date']}, {found['machine']}. Gy, 95 % intervals over patients."
    yield ""
    yield "| | patients | dose score | DVH score | MAE above 5 Gy |"
    yield "|---|---:|---|---|---|"
    for of, name in (("scores", "all"), ("scores_with_ct", "with CT")):
        for way, scores in found[of].items():
            cells = " | ".join(interval(scores[key]) for key in ("dose", "dvh", "mae"))
            yield f"| {way}, {name} | {scores['dose']['patients']} | {cells} |"
    yield ""
    yield "| subgroup (mean of samples) | patients | dose score | DVH score |"
    yield "|---|---:|---|---|"
    for name, scores in found["subgroups"].items():
        cells = " | ".join(interval(scores[key]) for key in ("dose", "dvh"))
        yield f"| {name} | {scores['dose']['patients']} | {cells} |"
    yield from _spread(found["calibration"])
    yield from _steering(found.get("steering", ()), found.get("steering_samples", asked["samples"]))


def _spread(found: Mapping[str, Any]) -> Iterator[str]:
    fit = found.get("fit")
    if not fit:
        return
    yield ""
    yield f"Bands of the samples on {len(fit['judged_on'])} patients, as drawn and widened by the factor"
    yield f"{fit['factor']:.2f}, which was fitted on {len(fit['fitted_on'])} others; share of the truth:"
    yield ""
    yield "| band | voxels, as drawn | voxels, widened | DVH points, as drawn | DVH points, widened |"
    yield "|---|---|---|---|---|"
    for level, drawn in fit["coverage_as_drawn"].items():
        wide = fit["coverage_widened"][level]
        cells = [interval(part[of]) for of in ("voxels", "dvh") for part in (drawn, wide)]
        yield f"| {level} | {' | '.join(cells)} |"


def _steering(rows: list[Mapping[str, Any]], samples: int) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield f"Asked for another mean of an organ, {samples} samples each; achieved changes in Gy:"
    yield ""
    yield "| asked | way | patients | the organ | other organs | D95 of the targets |"
    yield "|---|---|---:|---|---|---|"
    for row in rows:
        d95 = ", ".join(f"{name} {interval(value)}" for name, value in row["d95_gy"].items())
        achieved = row["achieved_gy"]
        yield (
            f"| {row['organ']} {row['asked_gy']:+g} Gy | {row['way']} | {achieved['patients']} "
            f"| {interval(achieved)} | {interval(row['other_organs_gy'])} | {d95} |"
        )


def _parts(found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "## Parts of the dose model"
    yield ""
    yield f"`python benchmarks/ablation.py`, {found['date']}. Small trainings that differ in one thing:"
    yield f"{found['samples']} cases drawn, grids of twice the voxel size. Dose and DVH score in Gy;"
    yield "comparable with each other alone."
    yield ""
    yield "| | dose score | DVH score | minutes |"
    yield "|---|---:|---:|---:|"
    for name, row in found["rows"].items():
        for way, (dose, dvh) in row["scores"].items():
            yield f"| {name}{', ' if way else ''}{way} | {dose:.2f} | {dvh:.2f} | {row['minutes']} |"


def _plans(found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "## Plans that aim at the predicted dose"
    yield ""
    yield f"`python benchmarks/priors.py`, {found['date']}; search of at most {found['max_minutes']:g} min."
    yield "Missed goals are must/should/wish; excess is by how much all limits are missed, in percent of"
    yield "them."
    yield ""
    yield "| patient | prior | missed | excess % | organ means, Gy | MU | minutes | search |"
    yield "|---|---|---|---:|---:|---:|---:|---|"
    for patient, plans in found["plans"].items():
        for prior, p in plans.items():
            organs = p["organ_mean_gy"].values()
            mean = sum(organs) / len(organs)
            missed = f"{p['missed_must']}/{p['missed_should']}/{p['missed_wish']}"
            yield (
                f"| {patient} | {prior} | {missed} | {p['excess_percent']:.0f} | {mean:.1f} "
                f"| {p['mu']:.0f} | {p['minutes']:.1f} | {p['outcome'].lower().replace('_', ' ')} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("found", type=Path, help="what `benchmark openkbp --out` wrote")

    found = json.loads(parser.parse_args().found.read_text(encoding="utf-8"))
    kept = {key: value for key, value in found.items() if key not in _LEFT_OUT}
    kept["settings"] = {k: v for k, v in kept["settings"].items() if k not in ("data", "train_data")}
    kept |= stamp()
    with written_whole(FIGURES) as part:
        part.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print("\n".join(section()))


if __name__ == "__main__":
    main()
