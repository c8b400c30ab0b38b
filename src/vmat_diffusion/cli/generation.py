"""The command that draws plans as samples."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from vmat_diffusion.cli.display import run_text, show, table, work_shown
from vmat_diffusion.cli.fields import CaseFolder, OutFolder, Overwrite, Working
from vmat_diffusion.cli.options import part
from vmat_diffusion.options import settings
from vmat_diffusion.workflow.generate import GenerateSettings

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
