"""`generate`: plans drawn as samples, the best of them judged and written as `plan` does."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmat_diffusion.case import Case
from vmat_diffusion.files import parse_json, write_json, written_whole
from vmat_diffusion.machine import Machine
from vmat_diffusion.progress import Progress
from vmat_diffusion.workflow.output import require_apart
from vmat_diffusion.workflow.planning.request import plan_settings
from vmat_diffusion.workflow.planning.result import PlanRun
from vmat_diffusion.workflow.planning.run import plan_case
from vmat_diffusion.workflow.planning.run_files import RECORD, SAMPLES, SAMPLES_RECORD
from vmat_diffusion.workflow.planning.search import PlanningTools
from vmat_diffusion.workflow.provenance import settings_record
from vmat_diffusion.workflow.settings import GenerateSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalSheet
    from vmat_diffusion.generate.plans import GeneratedPlans
    from vmat_diffusion.optimize import Optimized


@dataclass(eq=False)
class Generator:
    """Stands in for the optimiser of a planning run: draws plans and returns the best one.

    A correction, which continues a plan, is the optimiser's own. `made` is what was drawn.
    """

    settings: GenerateSettings
    made: GeneratedPlans | None = field(default=None)

    def __call__(self, case: Case, sheet: GoalSheet, machine: Machine, **options: Any) -> Optimized:
        """The best of the samples, or the continued plan."""
        from vmat_diffusion.generate.model import load_fluence_model
        from vmat_diffusion.generate.plans import generate_plans
        from vmat_diffusion.generate.sample import Reverse
        from vmat_diffusion.optimize import optimize

        if options.get("start") is not None:
            return optimize(case, sheet, machine, **options)
        asked = self.settings
        self.made = generate_plans(
            case,
            sheet,
            machine,
            load_fluence_model(asked.generator),
            samples=asked.samples,
            reverse=Reverse(asked.reverse_steps, asked.descents, asked.projection),
            leaf_steps=asked.leaf_steps,
            settings=options["settings"],
            finalize=options["finalize"],
            progress=options["progress"],
        )
        return self.made.chosen


@dataclass(frozen=True, eq=False)
class GenerateRun:
    """The run of the best sample, as `plan` makes it, and all samples."""

    run: PlanRun
    made: GeneratedPlans

    def summary(self) -> dict[str, Any]:
        """The object that `generate --json` prints."""
        return {**self.run.summary(), **samples_record(self.made)}


def samples_record(made: GeneratedPlans) -> dict[str, Any]:
    """The samples in order of rank, how far they differ, and what is unusual about the case."""
    return {
        "generator": made.model,
        "samples": [sample.record() for sample in made.samples],
        "diversity_gy": round(made.diversity_gy, 3),
        "unusual": list(made.warnings),
        "generate_seconds": dict(made.seconds),
    }


def generate_case(
    case_folder: Path,
    out: Path,
    settings: GenerateSettings,
    *,
    overwrite: bool = False,
    tools: PlanningTools | None = None,
    progress: Progress | None = None,
) -> GenerateRun:
    """Draw plans for the case in a DICOM folder, judge the best, and write it as `plan_case` does.

    Beside its files the doses of all samples are written on coarse voxels, with their record. Of `tools` the
    optimiser is not used. Raises InputError where the input, the settings, the weights or the folder `out`
    cannot be used.
    """
    from vmat_diffusion.generate.model import load_fluence_model

    file = None if settings.generator == "shipped" else Path(settings.generator)
    require_apart(out, case_folder, file)
    load_fluence_model(settings.generator)  # wrong weights are refused before anything is read
    own = {"generator", "samples", "reverse_steps", "descents", "projection", "leaf_steps"}
    # What is as by default is left to the goal sheet.
    given = {
        f.name: getattr(settings, f.name)
        for f in fields(settings)
        if f.name not in own and getattr(settings, f.name) != f.default
    }
    generator = Generator(settings)
    asked = replace(plan_settings(**given), yardstick="never")
    run = plan_case(
        case_folder,
        out,
        asked,
        overwrite=overwrite,
        tools=replace(tools or PlanningTools(), optimizer=generator),
        progress=progress,
    )
    assert generator.made is not None
    files = _write_samples(out.resolve(), generator.made, settings)
    return GenerateRun(replace(run, files=(*run.files, *files)), generator.made)


def _write_samples(out: Path, made: GeneratedPlans, settings: GenerateSettings) -> tuple[Path, ...]:
    """Doses of all samples in Gy, best first, with their spread, and the record of all.

    The run's record lists the files before they are there, and is at no time half written.
    """
    drawn = {"settings": settings_record(settings), **samples_record(made)}
    record = parse_json((out / RECORD).read_text(encoding="utf-8"))
    record["files"] += [SAMPLES, SAMPLES_RECORD]
    with written_whole(out / RECORD) as part:
        write_json(part, {**record, "generated": drawn})
    grid = made.samples[0].dose.grid
    with written_whole(out / SAMPLES) as part, part.open("wb") as stream:
        np.savez_compressed(
            stream,
            gy=np.stack([s.dose.gy for s in made.samples]).astype(np.float16),
            spread_gy=made.spread_gy.astype(np.float16),
            number=np.array([s.number for s in made.samples]),
            spacing_mm=np.asarray(grid.spacing_mm),
            origin_mm=np.asarray(grid.origin_mm),
        )
    with written_whole(out / SAMPLES_RECORD) as part:
        write_json(part, drawn)
    return out / SAMPLES, out / SAMPLES_RECORD
