"""`export-weights`: the weights of a checkpoint with their record, their domain and their calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion import __version__
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import read_json
from vmat_diffusion.workflow.provenance import git_revision

if TYPE_CHECKING:  # torch takes seconds to load
    from vmat_diffusion.diffusion.model import Calibration, DoseModel
    from vmat_diffusion.training.checkpoint import Checkpoint

WEIGHTS, KNOWN = "weights.safetensors", "known.json"


def export_weights(run: Path, file: Path | None = None, calibration: Path | None = None) -> Path:
    """Write the weights of the last checkpoint of a training; `file` None: into its folder.

    `calibration` is the JSON file of a `benchmark openkbp --fit-spread` of these very weights. `run` may also
    be a file of weights, which gets the calibration and stays as it is else. Raises InputError where it is of
    others or fitted none.
    """
    if run.is_file():
        return _recalibrated(run, file, calibration)
    from vmat_diffusion.training.checkpoint import CHECKPOINT, load_checkpoint

    return export_checkpoint(load_checkpoint(run / CHECKPOINT), run, file or run / WEIGHTS, calibration)


def export_checkpoint(checkpoint: Checkpoint, run: Path, file: Path, fit: Path | None = None) -> Path:
    """Write the averaged weights of a checkpoint of the training in `run`.

    The card holds those of the weights that the training began with; the domain is that of their cases and of
    the training's own; their calibration stays, said to be inherited, until another is fitted.
    """
    from vmat_diffusion.diffusion.domain import joined_figures
    from vmat_diffusion.diffusion.model import save_model
    from vmat_diffusion.training.checkpoint import read_metrics
    from vmat_diffusion.training.weights import model_of

    origin = checkpoint.origin or {}
    card = {
        "name": run.absolute().name,
        "program": {"version": __version__, "git": git_revision()},
        "stage": checkpoint.stage + 1,
        "samples": checkpoint.samples,
        "validation": [record for record in read_metrics(run) if "validation" in record][-1:],
        "settings": checkpoint.settings,
        **({"begun_from": origin["card"]} if origin else {}),
    }
    model = model_of(checkpoint, card)
    known = joined_figures(origin.get("known", {}), _known(run))
    calibration = _calibration(origin, model) if fit is None else _fitted(fit, model)
    described = replace(model.description, known=known, calibration=calibration)
    return save_model(file, replace(model, description=described))


def _recalibrated(weights: Path, file: Path | None, calibration: Path | None) -> Path:
    from vmat_diffusion.diffusion.model import load_model, save_model

    if file is None or calibration is None:
        raise InputError(
            f"{weights.name} is a file of weights, to which a fitted spread alone can be added; give "
            "--calibration FIT and --out FILE, or name the folder of a training"
        )
    model = load_model(weights)
    described = replace(model.description, calibration=_fitted(calibration, model))
    return save_model(file, replace(model, description=described))


def origin_of(model: DoseModel) -> dict[str, Any]:
    """What a training that begins with a model keeps of it, as plain data."""
    described = model.description
    calibration = described.calibration
    return {
        "card": dict(described.card),
        "known": dict(described.known),
        "calibration": asdict(calibration) if calibration is not None else None,
    }


def _known(run: Path) -> dict[str, Any]:
    from vmat_diffusion.diffusion.domain import are_figures

    known = read_json(run / KNOWN) if (run / KNOWN).exists() else {}
    if not isinstance(known, dict) or not are_figures(known):
        raise InputError(
            f"{run / KNOWN} is damaged; remove it and train on with --resume, which makes it again"
        )
    return known


def _calibration(origin: Mapping[str, Any], model: DoseModel) -> Calibration | None:
    """That of the weights that the training began with; None for a model without diffusion."""
    from vmat_diffusion.diffusion.model import Calibration

    before: dict[str, Any] | None = origin.get("calibration")
    if before is None or model.residual is None:
        return None
    return Calibration(**{**before, "patients": tuple(before["patients"]), "inherited": True})


def _fitted(file: Path, model: DoseModel) -> Calibration:
    from vmat_diffusion.diffusion.model import Calibration

    record: Any = read_json(file)
    try:
        weights, settings, fit = record["weights"], record["settings"], record["calibration"]["fit"]
        found = Calibration(
            settings["method"],
            int(settings["steps"]),
            spread=float(fit["factor"]),
            points=None if fit["points_factor"] is None else float(fit["points_factor"]),
            patients=tuple(str(name) for name in fit["fitted_on"]),
        )
        of_these = weights["networks_sha256"] == model.networks_sha256()
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{file.name} holds no fitted spread; give the file of benchmark openkbp --fit-spread --out FILE"
        ) from None
    if not of_these:
        raise InputError(
            f"the spread in {file.name} was fitted on other weights; run benchmark openkbp --fit-spread with "
            "these"
        )
    return found
