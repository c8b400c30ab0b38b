"""The commands that go from a case to a plan."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vmat_diffusion.cli.display import progress_bar, run_text, show, stdout_kept
from vmat_diffusion.cli.options import (
    AllowOutsideBody,
    AsJson,
    CheckMinutes,
    CtTableFile,
    GateFile,
    MachineName,
    MappingFile,
    PatientPosition,
    TrajectoryKind,
    Uncertainty,
    reading_options,
)
from vmat_diffusion.errors import InputError


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Any folder of DICOM files.")],
    mapping: MappingFile = None,
    patient_position: PatientPosition = None,
    allow_outside_body: AllowOutsideBody = False,
    as_json: AsJson = False,
) -> None:
    """Show what a folder holds, and what would be refused and why."""
    from vmat_diffusion.dicom.inspection import inspect as inspect_folder

    if not folder.exists():
        raise InputError(f"{folder} does not exist; give a folder of DICOM files")
    with stdout_kept():
        found = inspect_folder(
            folder,
            mapping=mapping,
            patient_position=patient_position,
            allow_outside_body=allow_outside_body,
        )
    show(json.dumps(asdict(found)) if as_json else "\n".join(found.lines()))


def phantom(
    name: Annotated[str, typer.Argument(help="tg119_cshape, thorax, ... or prostate, head_neck, lung.")],
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder.")],
    seed: Annotated[
        int | None, typer.Option(help="Which synthetic patient of a site; 0 unless given.")
    ] = None,
) -> None:
    """Write a built-in case or a synthetic patient as a DICOM CT with its structure set."""
    from vmat_diffusion.anatomy import SITES, synthetic_case
    from vmat_diffusion.dicom import write_case
    from vmat_diffusion.phantom import PHANTOMS
    from vmat_diffusion.phantom import phantom as build

    if name in SITES:
        case = synthetic_case(name, seed or 0)
    elif name not in PHANTOMS:
        raise InputError(
            f"{name!r} is no phantom ({', '.join(PHANTOMS)}) and no site of synthetic patients "
            f"({', '.join(SITES)}); give one of these names"
        )
    elif seed is not None:
        raise InputError(
            f"--seed is for synthetic patients ({', '.join(SITES)}), not for {name}, which is always "
            "the same; leave it out"
        )
    else:
        case = build(name)
    show("\n".join(str(file) for file in write_case(out, case)))


def plan(
    case: Annotated[Path, typer.Argument(metavar="CASE", help="Folder with CT and structure set.")],
    goals: Annotated[str, typer.Option("--goals", help="A shipped sheet's name or a TOML file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    machine: MachineName = "generic_6mv",
    prior: Annotated[
        str, typer.Option(help="What drives the plan: goals, or diffusion for the predicted dose as well.")
    ] = "goals",
    weights: Annotated[
        str, typer.Option(help="Of the prediction: 'shipped' or a safetensors file.")
    ] = "shipped",
    candidates: Annotated[
        int, typer.Option(help="Plans to choose from, each for a sample of the prediction.")
    ] = 1,
    arcs: Annotated[int, typer.Option(help="Number of arcs.")] = 2,
    arc_start: Annotated[
        float | None, typer.Option(help="Gantry angle of the first arc's start, deg.")
    ] = None,
    arc_stop: Annotated[float | None, typer.Option(help="Gantry angle of the first arc's stop, deg.")] = None,
    collimator: Annotated[
        list[float] | None, typer.Option(help="Collimator angle, deg; once for all arcs or once per arc.")
    ] = None,
    couch: Annotated[
        list[float] | None, typer.Option(help="Couch angle, deg; once for all arcs or once per arc.")
    ] = None,
    span: Annotated[
        str, typer.Option(help="full, or partial: arcs round the side of the targets only.")
    ] = "full",
    avoid: Annotated[
        list[str] | None,
        typer.Option(metavar="FROM:TO", help="Sector that no beam comes from, clockwise, deg. Repeatable."),
    ] = None,
    seconds_per_turn: Annotated[
        float, typer.Option(help="Beam time of a full turn; the longer, the further leaves can move.")
    ] = 100.0,
    jaws: Annotated[
        str | None, typer.Option(help="tracking or fixed; unless given, as the machine can.")
    ] = None,
    normalize_gy: Annotated[
        float | None,
        typer.Option(help="Dose for the sheet's normalisation in place of its own."),
    ] = None,
    grid_mm: Annotated[float, typer.Option(help="Spacing of the dose grid, mm.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Same seed, same plan, on one device.")] = 0,
    device: Annotated[str, typer.Option(help="auto or cpu: no GPU engine as yet.")] = "auto",
    max_minutes: Annotated[float, typer.Option(help="Stop optimising after this time.")] = 5.0,
    uncertainty: Uncertainty = 0.02,
    check_minutes: CheckMinutes = None,
    gate: GateFile = None,
    improve: Annotated[
        Path | None,
        typer.Option(
            help="Start from this RTPLAN, whoever made it: its arcs are kept, its apertures bettered."
        ),
    ] = None,
    trajectory: TrajectoryKind = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run's files.")] = False,
    mapping: MappingFile = None,
    ct_table: CtTableFile = None,
    patient_position: PatientPosition = None,
    allow_outside_body: AllowOutsideBody = False,
    as_json: AsJson = False,
) -> None:
    """Plan a case: writes RP.dcm, RD.dcm, report.html, run.json, control_points.csv and fluence.npz.

    Every plan is recomputed by Monte Carlo and judged; one that does not pass gets no RP.dcm, and the
    exit code is 1. Ctrl-C while optimising keeps the best plan so far.
    """
    from vmat_diffusion.workflow import plan_case, plan_settings

    settings = plan_settings(
        goals=goals,
        machine=machine,
        prior=prior,
        weights=weights,
        candidates=candidates,
        arcs=arcs,
        arc_start_deg=arc_start,
        arc_stop_deg=arc_stop,
        span=span,
        collimator_deg=tuple(collimator) if collimator else None,
        couch_deg=tuple(couch) if couch else None,
        avoid_deg=tuple(_sector(text) for text in avoid or ()),
        seconds_per_turn=seconds_per_turn,
        jaws=jaws,
        normalize_gy=normalize_gy,
        grid_mm=grid_mm,
        seed=seed,
        device=device,
        max_minutes=max_minutes,
        uncertainty=uncertainty,
        check_minutes=check_minutes,
        gate=str(gate) if gate else None,
        improve=str(improve) if improve else None,
        **reading_options(mapping, ct_table, patient_position, allow_outside_body=allow_outside_body),
        trajectory=trajectory,
    )
    with stdout_kept(), progress_bar() as progress:
        run = plan_case(case, out, settings, overwrite=overwrite, progress=progress)
    show(json.dumps(run.summary()) if as_json else run_text(run))
    raise typer.Exit(0 if run.passed else 1)


def _sector(text: str) -> tuple[float, float]:
    """`80:120`; InputError for anything else."""
    first, _, second = text.partition(":")
    try:
        return float(first), float(second)
    except ValueError:
        raise InputError(f"--avoid {text!r} is no sector; write two angles in degrees as 80:120") from None


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for phantom and results.")] = Path("demo_out"),
) -> None:
    """Plan the TG-119 C-shape phantom from scratch: goals table, files and a picture."""
    from vmat_diffusion.workflow import run_demo

    with stdout_kept(), progress_bar() as progress:
        run, picture = run_demo(out, progress=progress)
    show(f"{run_text(run)}\n{picture}")
    raise typer.Exit(0 if run.passed else 1)
