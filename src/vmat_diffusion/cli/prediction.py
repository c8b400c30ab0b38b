"""The command that predicts dose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmat_diffusion.cli.display import goals_text, progress_bar, show, stdout_kept, table
from vmat_diffusion.cli.options import (
    AllowOutsideBody,
    AsJson,
    CtTableFile,
    MappingFile,
    Overwrite,
    PatientPosition,
    reading_options,
)

if TYPE_CHECKING:
    from vmat_diffusion.workflow.predict import PredictRun


def predict(
    case: Annotated[
        Path,
        typer.Argument(metavar="CASE", help="Folder with CT and structure set, or a training case's npz."),
    ],
    goals: Annotated[str, typer.Option("--goals", help="A shipped sheet's name or a TOML file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    samples: Annotated[int, typer.Option(help="Doses to draw; 0 for the regression alone.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of the sampler for each.")] = 8,
    seed: Annotated[int, typer.Option(help="Same seed, same doses, on one device.")] = 0,
    weights: Annotated[str, typer.Option(help="'shipped' or a safetensors file.")] = "shipped",
    guidance: Annotated[
        float, typer.Option(help="Weight of the goals that are told to the model; 1 as it was trained.")
    ] = 1.0,
    pull: Annotated[
        float, typer.Option(help="0 to 1: how much of a missed goal each step of the sampler makes good.")
    ] = 0.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Overwrite = False,
    mapping: MappingFile = None,
    ct_table: CtTableFile = None,
    patient_position: PatientPosition = None,
    allow_outside_body: AllowOutsideBody = False,
    as_json: AsJson = False,
) -> None:
    """Predict the dose of a case: mean, spread and samples, and the sample that meets the goals best."""
    from vmat_diffusion.workflow.predict import predict_case
    from vmat_diffusion.workflow.settings import predict_settings

    settings = predict_settings(
        goals=goals,
        samples=samples,
        steps=steps,
        seed=seed,
        weights=weights,
        guidance=guidance,
        pull=pull,
        device=device,
        **reading_options(mapping, ct_table, patient_position, allow_outside_body=allow_outside_body),
    )
    with stdout_kept(), progress_bar() as progress:
        run = predict_case(case, out, settings, overwrite=overwrite, progress=progress)
    show(json.dumps(run.summary()) if as_json else _text(run))


def _text(run: PredictRun) -> str:
    """Goals on the mean, the samples' scores, the choice, and what the model does not know."""
    done = run.prediction
    told = [f"{organ} mean {gy:.1f} Gy" for organ, gy in done.conditioning.mean_gy.items()]
    told += [f"{organ} D0.1cc {gy:.1f} Gy" for organ, gy in done.conditioning.hot_gy.items()]
    parts = [
        f"Goals on the {'mean' if done.samples else 'predicted'} dose\n" + goals_text(done.results[0]),
        f"Told to the model: {', '.join(told) or 'nothing, its free prediction exceeds no limit it knows'}",
    ]
    if done.samples:
        rows = [
            [k, *s.missed, f"{s.excess_percent:.1f}", f"{s.used_percent:.1f}"]
            for k, s in enumerate(done.scores[1:])
        ]
        parts.append(table(["sample", "must", "should", "wish", "excess %", "limits used %"], rows, left=1))
    parts.append(done.reason)
    parts += [f"Unusual for the model: {sentence}" for sentence in done.warnings]
    parts.append("Seconds: " + ", ".join(f"{name} {s:.1f}" for name, s in run.seconds.items()))
    parts.append("\n".join(str(file) for file in run.files))
    return "\n\n".join(parts)
