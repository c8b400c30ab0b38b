"""What the package's own benchmark commands found, kept for docs/benchmarks.md.

    vmat-diffusion benchmark tg119 --json > FILE         and  python benchmarks/commands.py tg119 FILE
    vmat-diffusion benchmark plans --data D --out DIR    and  python benchmarks/commands.py plans DIR
    vmat-diffusion benchmark gap ... --json > FILE       and  python benchmarks/commands.py gap FILE
    vmat-diffusion benchmark openkbp --data D --out FILE and  python benchmarks/commands.py openkbp FILE

TG-119 cases that FILE does not hold keep their figures. Nothing of single patients of OpenKBP is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from computer import stamp
from figures import load, load_file, save

from vmat_diffusion.benchmark.plans_tables import SUMMARY_MD
from vmat_diffusion.benchmark.tg119_cases import CASES

_OF_PATIENTS = ("by_patient", "left_out")
_OF_FOLDERS = ("data", "train_data")


def tg119_section() -> Iterator[str]:
    """The TG-119 cases; none without figures."""
    figures = load("tg119")
    if not figures:
        return
    yield ""
    yield "## TG-119"
    yield ""
    reached = {name: [_reached(g) for g in f["goals"]] for name, f in figures.items()}
    gated = {name: f["gate"]["passed"] for name, f in figures.items()}
    passed = {name: gated[name] and all(goal for goal, _, _ in reached[name]) for name in figures}
    by_mean = {name: gated[name] and all(enough for _, _, enough in reached[name]) for name in figures}
    yield f"{sum(passed.values())} of {len(figures)} cases passed: every goal reached and the gate passed."
    yield f"{sum(by_mean.values())} passed where the published mean is enough for a goal that the report's"
    yield "institutions missed on average. Published means are recalled, unverified (*)."
    plans = "`vmat-diffusion benchmark tg119` plans them."
    yield f"{plans} [TG-119](tg119.md) describes the cases and what passing"
    yield "means. Minutes of wall clock are those of the whole run with its"
    yield "Monte Carlo check; optimise is without it."
    yield ""
    columns = ("minutes", "optimise, s", "MU", "beam on, s", "violations", "gate", "date")
    yield "| case | every goal | by the mean | " + " | ".join(columns) + " |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---|---|"
    for name, f in figures.items():
        failed = ", ".join(c["name"] for c in f["gate"]["checks"] if not c["passed"])
        optimise = sum(f["seconds"].get(stage, 0) for stage in ("optimise", "dose", "optimise again"))
        yield (
            f"| {name} | {_word(passed[name])} | {_word(by_mean[name])} | {f['minutes']:.1f} | "
            f"{optimise:.0f} | {f['mu']:.0f} | {f['delivery_s']:.0f} | {len(f['violations'])} | "
            f"{failed or 'passed'} | {f['date']} |"
        )
    yield ""
    yield "| case | structure | goal | Gy | goal reached | published, Gy | mean reached |"
    yield "|---|---|---|---:|---|---:|---|"
    for name, f in figures.items():
        for g, (goal, mean, _) in zip(f["goals"], reached[name], strict=True):
            unverified = "" if g.get("published_verified", False) else " *"
            yield (
                f"| {name} | {g['structure']} | {g['goal']} | {g['value']:.2f} | {_word(goal)} | "
                f"{g['published_mean']:.2f} ± {g['published_sd']:.2f}{unverified} | "
                f"{'yes' if mean else 'no'} |"
            )
    yield ""
    yield f"Measured on {'; '.join(dict.fromkeys(f['machine'] for f in figures.values()))}."


def _reached(goal: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    """Whether a kept goal is reached, its published mean is, and what is enough of the two."""
    sign = 1.0 if ">=" in goal["goal"] else -1.0

    def good(value: float, limit: float) -> bool:
        return sign * value >= sign * limit - 1e-6 * max(abs(limit), 1.0)

    at_goal, at_mean = (good(goal["value"], goal[limit]) for limit in ("limit", "published_mean"))
    return at_goal, at_mean, at_goal or (at_mean and not good(goal["published_mean"], goal["limit"]))


def _word(good: bool) -> str:
    return "yes" if good else "**no**"


def plans_section() -> Iterator[str]:
    """Plans of OpenKBP patients against their clinical doses; none without tables."""
    kept = load("clinical")
    if not kept:
        return
    yield ""
    for line in kept["tables"].splitlines():
        yield f"#{line}" if line.startswith("#") else line
    yield ""
    yield "[Plans against clinical doses](plans_benchmark.md) says what the columns mean."
    yield "The command is `vmat-diffusion benchmark plans --data DIR --count 20`."
    yield f"Measured on {kept['date']} on {kept['machine']}. {kept['remark']}".rstrip()


def gap_section() -> Iterator[str]:
    """What plans lose between ideal fluence and leaves; none without figures."""
    kept = load("gap")
    if not kept:
        return
    yield ""
    yield "## From ideal fluence to leaves"
    yield ""
    yield "[Free fluence](optimiser.md#how-far-from-ideal) of 36 directions, that of the arcs' sectors,"
    yield "the priced fluence maps, and the plan, in Gy at the same points; what each step takes of the gap."
    yield "Patients are OpenKBP validation patients. `vmat-diffusion benchmark gap` measures it."
    yield ""
    steps = " | ".join(f"{name}, %" for name in kept["losses"])
    yield f"| | ideal | free sectors | priced maps | plan | gap | {steps} |"
    yield "|---|" + "---:|" * 8
    for name, gaps in kept["gaps"].items():
        for gap in gaps:
            values = " | ".join(f"{value:.1f}" for value in gap["values"])
            shares = " | ".join(f"{share:.0f}" for share in gap["percent"] or ()) or " | | "
            yield f"| {name}: {gap['what']} | {values} | {gap['gap']:+.1f} | {shares} |"
    yield ""
    yield f"Measured on {kept['date']} on {kept['machine']}."


def interval(found: Mapping[str, Any]) -> str:
    """A value with its 95 % interval."""
    low, high = found["low"], found["high"]
    between = "" if low is None else f" ({low:.2f} to {high:.2f})"
    return f"{found['value']:.2f}{between}"


def openkbp_section() -> Iterator[str]:
    """The scores of the dose model on OpenKBP; none without figures."""
    found = load("openkbp")
    if not found:
        return
    asked = found["settings"]
    yield ""
    yield "## Dose model on OpenKBP"
    yield ""
    drawn = f"--samples {asked['samples']} --steps {asked['steps']} --method {asked.get('method', 'ddim')}"
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


def keep_tg119(found: Mapping[str, Any]) -> None:
    """Keep the object that `benchmark tg119 --json` prints, case by case."""
    figures = load("tg119") | {case["name"]: dict(case) | stamp() for case in found["cases"]}
    save("tg119", {name: figures[name] for name in CASES if name in figures})


def keep_plans(folder: Path, remark: str) -> None:
    """Keep the tables that `benchmark plans --out` wrote."""
    tables = (folder / SUMMARY_MD).read_text(encoding="utf-8")
    save("clinical", stamp() | {"tables": tables, "remark": remark})


def keep_gap(found: Mapping[str, Any]) -> None:
    """Keep the object that `benchmark gap --json` prints: phantoms by name, patients as means over all."""
    phantoms = {case["id"]: case["gaps"] for case in found["cases"] if case["id"] in CASES}
    gaps = load("gap").get("gaps", {}) | phantoms
    if found["pooled"]:
        gaps["patients"] = found["pooled"]
    save("gap", {"losses": found["losses"], "gaps": gaps} | stamp())


def keep_openkbp(found: Mapping[str, Any]) -> None:
    """Keep the object that `benchmark openkbp --out` wrote, without single patients."""
    kept = {key: value for key, value in found.items() if key not in _OF_PATIENTS}
    kept["settings"] = {k: v for k, v in kept["settings"].items() if k not in _OF_FOLDERS}
    save("openkbp", kept | stamp())


def main() -> None:
    """Keep what a command found and print its section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("tg119", "plans", "gap", "openkbp"))
    parser.add_argument("found", type=Path, help="the file, or for plans the folder, that it wrote")
    parser.add_argument("--remark", default="", help="what a reader must know of this run of plans")
    given = parser.parse_args()
    if given.command == "tg119":
        keep_tg119(load_file(given.found))
        print("\n".join(tg119_section()))
    elif given.command == "plans":
        keep_plans(given.found, given.remark)
        print("\n".join(plans_section()))
    elif given.command == "gap":
        keep_gap(load_file(given.found))
        print("\n".join(gap_section()))
    else:
        keep_openkbp(load_file(given.found))
        print("\n".join(openkbp_section()))


if __name__ == "__main__":
    main()
