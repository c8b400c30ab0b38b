"""The whole road on a built-in case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vmat_diffusion.workflow.files import appearing_whole
from vmat_diffusion.workflow.run import PlanRun, Progress, plan_case
from vmat_diffusion.workflow.settings import plan_settings


def run_demo(out: Path, *, progress: Progress | None = None) -> tuple[PlanRun, Path]:
    """Plan the TG-119 C-shape phantom into `out/plan`; returns the run and the path of its picture."""
    from vmat_diffusion.dicom.write import write_case
    from vmat_diffusion.phantom import phantom
    from vmat_diffusion.report import plan_picture

    report: Callable[[str, float, str], None] = progress or (lambda stage, fraction, note: None)
    report("phantom", 0.0, "")
    with appearing_whole(out / "phantom", overwrite=True) as folder:
        write_case(folder, phantom("tg119_cshape"))
    report("phantom", 1.0, "")
    # Within the default gate, for four fifths of the usual time.
    settings = plan_settings(goals="tg119_cshape_easy", uncertainty=0.022)
    run = plan_case(out / "phantom", out / "plan", settings, overwrite=True, progress=progress)
    picture = plan_picture(
        out.resolve() / "plan.png", case=run.case, plan=run.plan, dose=run.dose, results=run.results
    )
    return run, picture
