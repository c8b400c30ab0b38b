"""The commands that draw plans as samples, and train what draws them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from vmat_diffusion.cli.display import run_text, show, table, work_shown
from vmat_diffusion.cli.fields import TO_FILE, CaseFolder, OutFolder, Overwrite, Working
from vmat_diffusion.cli.options import part
from vmat_diffusion.options import Option, settings
from vmat_diffusion.workflow.settings import GenerateSettings, Seed

if TYPE_CHECKING:
    from vmat_diffusion.workflow.generate import GenerateRun


@settings
class GenerateOptions(GenerateSettings, Working):
    """What `generate` takes."""

    case: CaseFolder
    out: OutFolder
    overwrite: Overwrite = False


def generate(options: GenerateOptions) -> None:
    """Draw plans as samples, rank them by the goals, judge the best and write it as `plan` does.

    Research: the samples are plans without a search for leaves unless --leaf-steps says so. Every plan is
    deliverable; the best is recomputed by Monte Carlo, and without a passed verdict there is no RP.dcm and
    the exit code is 1.
    """
    from vmat_diffusion.workflow.generate import generate_case

    asked = GenerateSettings(**part(GenerateSettings, options))
    with work_shown(options) as progress:
        done = generate_case(options.case, options.out, asked, overwrite=options.overwrite, progress=progress)
    show(json.dumps(done.summary()) if options.json else _generated_text(done))
    raise typer.Exit(0 if done.run.passed else 1)


def _generated_text(done: GenerateRun) -> str:
    """The best plan as `plan` shows it, then all samples by rank."""
    rows = []
    for sample in done.made.samples:
        score = sample.score
        rows.append(
            [
                sample.number + 1,
                *score.missed,
                f"{score.excess_percent:.1f}",
                f"{score.used_percent:.1f}",
                f"{sample.plan.total_mu:.0f}",
                len(sample.violations),
                f"{sample.seconds:.1f}",
            ]
        )
    head = ["sample", "must", "should", "wish", "excess %", "limits used %", "MU", "violations", "s"]
    parts = [run_text(done.run), "Samples, best first\n" + table(head, rows, left=1)]
    if len(rows) > 1:
        parts.append(f"Doses of the samples differ by {done.made.diversity_gy:.2f} Gy (standard deviation)")
    parts += [f"Unusual for the generator: {sentence}" for sentence in done.made.warnings]
    return "\n\n".join(parts)


@settings
class TrainGeneratorOptions(Working):
    """What `train-generator` takes."""

    maps: Annotated[
        Path,
        Field(description="Folder of the maps, as simulate --maps makes them."),
        Option(positional=True, metavar="MAPS"),
    ]
    out: Annotated[Path, Field(description="Where to write: the file of the weights."), TO_FILE]
    iterations: Annotated[int, Field(ge=1, le=1_000_000, description="Steps of training, one plan each.")] = (
        3000
    )
    minutes: Annotated[
        float | None,
        Field(gt=0, description="Training pauses after this time, minutes; the same command goes on."),
    ] = None
    plans: Annotated[int | None, Field(ge=2, description="Learn from so many plans at the most.")] = None
    seed: Seed = 0


def train_generator(options: TrainGeneratorOptions) -> None:
    """Train the network that draws plans on fluence maps; goes on from the checkpoint beside the weights.

    OpenKBP's validation and test patients and every tenth synthetic patient are kept out and give the error.
    """
    from vmat_diffusion.workflow.train_generator import train_generator as run

    with work_shown(options) as progress:
        card = run(
            options.maps,
            options.out,
            iterations=options.iterations,
            seed=options.seed,
            minutes=options.minutes,
            plans=options.plans,
            progress=progress,
        )
    text = f"{card['plans']} plans, kept out: {card['validation']}\n{options.out}"
    show(json.dumps(card) if options.json else text)
