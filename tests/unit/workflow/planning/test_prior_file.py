"""A dose in a file as an aim of `plan`: what is taken, what is refused, and what the gate says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from openkbp_files import arrays as openkbp_arrays
from openkbp_files import write_npz as write_openkbp
from small_case import StandIn, small_case

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dataset.cases import TrainingCase, save_case
from vmat_diffusion.dataset.openkbp import GOALS, read_openkbp
from vmat_diffusion.dicom import read_case, write_case, write_dose
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.evaluate.goals import GoalSheet, load_goals
from vmat_diffusion.evaluate.task import fit_to_each_other
from vmat_diffusion.geometry import Grid
from vmat_diffusion.workflow import plan_case, plan_settings
from vmat_diffusion.workflow.planning.prior_file import AIM, prior_from_file

SHEET = "tg119_cshape_easy"
SILENT = "the npz does not say whose dose it is"
# The target's middle, off the body's on every axis: a mirrored dose misses it.
CENTRE_MM = (-22.5, 17.5, 15.0)


def aside() -> Case:
    """The small case with its target, 3 cm wide, off the middle along x, y and z."""
    case = small_case()
    ptv = np.zeros(case.grid.shape, bool)
    ptv[10:15, 12:18, 4:10] = True
    core = np.zeros(case.grid.shape, bool)
    core[10:15, 12:18, 13:16] = True
    structures = dict(case.structures)
    for name, mask in (("PTV", ptv), ("Core", core)):
        structures[name] = replace(structures[name], mask=mask)
    return replace(case, structures=structures)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("aside") / "dicom"
    write_case(where, aside())
    return where


@pytest.fixture(scope="module")
def task(folder: Path) -> tuple[Case, GoalSheet]:
    return fit_to_each_other(read_case(folder), load_goals(SHEET))


def blob(grid: Grid, gy: float = 51.0) -> Dose:
    """A dose that is flat over the target and falls off around it."""
    x, y, z = grid.axes_mm
    away = [np.abs(np.asarray(axis) - c) for axis, c in zip((x, y, z), CENTRE_MM, strict=True)]
    far = np.maximum(np.maximum(away[0][None, None, :], away[1][None, :, None]), away[2][:, None, None])
    return Dose(grid, (gy * np.clip(1 - (far - 20.0) / 25.0, 0.05, 1.0)).astype(np.float32))


FINE = Grid((40, 48, 48), (2.5, 2.5, 3.0), (-58.75, -58.75, -58.5))
GRIDS = {
    "that of the case": small_case().grid,
    "finer": FINE,
    "coarser and shifted": Grid((17, 20, 19), (7.0, 6.3, 7.7), (-61.3, -58.1, -60.9)),
    "larger than the case": Grid((44, 50, 50), (5.0, 5.0, 6.0), (-122.5, -122.5, -130.0)),
}


def npz(path: Path, dose: Dose, /, **changes: object) -> Path:
    held = {"dose": dose.gy, "spacing_mm": dose.grid.spacing_mm, "origin_mm": dose.grid.origin_mm, **changes}
    np.savez(path, **{name: values for name, values in held.items() if values is not None})
    return path


def rtdose(
    path: Path, dose: Dose, case: Case, change: Callable[[pydicom.Dataset], None] | None = None
) -> Path:
    write_dose(path, dose, case, plan_file=None, overwrite=True)
    if change is not None:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)
    return path


@pytest.mark.parametrize("grid", GRIDS)
def test_a_dose_on_any_grid_that_holds_the_targets_is_taken(
    tmp_path: Path, task: tuple[Case, GoalSheet], grid: str
) -> None:
    case, sheet = task
    dose = blob(GRIDS[grid])
    for file, kind in (
        (rtdose(tmp_path / "d.dcm", dose, case), "RTDOSE"),
        (npz(tmp_path / "d.npz", dose), "npz dose"),
    ):
        prior = prior_from_file(file, case, sheet)
        (taken,), (check,) = prior.doses, prior.checks
        np.testing.assert_allclose(taken.on(case.grid), dose.on(case.grid), atol=1e-3)
        assert check.name == AIM and check.passed and check.warns == (kind == "npz dose")
        assert prior.origin["kind"] == kind and prior.origin["levels_gy"]["PTV"] == pytest.approx(
            51.0, abs=0.2
        )


def test_what_cannot_be_held_against_the_case_is_a_warning(
    tmp_path: Path, task: tuple[Case, GoalSheet]
) -> None:
    case, sheet = task

    def silent(dataset: pydicom.Dataset) -> None:
        del dataset.FrameOfReferenceUID
        dataset.StudyInstanceUID = "1.2.3"

    (check,) = prior_from_file(rtdose(tmp_path / "d.dcm", blob(FINE), case, silent), case, sheet).checks
    assert check.warns and "the dose does not say its frame of reference" in check.why
    assert "another study" in check.why
    (check,) = prior_from_file(npz(tmp_path / "d.npz", blob(FINE)), case, sheet).checks
    assert check.why == SILENT


def test_an_organ_that_the_grid_does_not_hold_is_named_and_not_aimed_at(
    tmp_path: Path, task: tuple[Case, GoalSheet]
) -> None:
    case, sheet = task
    small = Grid(
        (24, 26, 25), (2.5, 2.5, 3.0), (-51.25, -16.25, -25.5)
    )  # up to 11 mm in x; the core begins at 5
    (check,) = prior_from_file(rtdose(tmp_path / "d.dcm", blob(small), case), case, sheet).checks
    assert "the dose's grid holds 33 % of Core; it is not aimed at" in check.why
    from vmat_diffusion.dose import dose_grid
    from vmat_diffusion.optimize.objective_terms import HistogramAim
    from vmat_diffusion.optimize.objectives import build_objective

    objective = build_objective(case, sheet, dose_grid(case, 5.0), np.random.default_rng(0))
    assert objective.aiming_at(blob(small), HistogramAim).aims == ()
    assert [aim.region.name for aim in objective.aiming_at(blob(FINE), HistogramAim).aims] == ["Core"]


def of_summation(kind: str) -> Callable[[pydicom.Dataset], None]:
    def change(dataset: pydicom.Dataset) -> None:
        dataset.DoseSummationType = kind

    return change


def with_value(keyword: str, value: object) -> Callable[[pydicom.Dataset], None]:
    def change(dataset: pydicom.Dataset) -> None:
        setattr(dataset, keyword, value)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_value("DoseUnits", "RELATIVE"), r"DoseUnits \(3004,0002\) is RELATIVE, GY is needed"),
        (with_value("DoseType", "EFFECTIVE"), "DoseType .* is EFFECTIVE, PHYSICAL is needed"),
        (of_summation("BEAM"), "that of a single beam"),
        (of_summation("FRACTION"), "of kind FRACTION and needs its plan"),
        (of_summation("FRACTION_SESSION"), "of kind FRACTION_SESSION and needs its plan"),
        (with_value("PatientID", "another"), "the dose has another patient ID than the CT.*or pass --force"),
        (with_value("FrameOfReferenceUID", "1.2.3"), "another frame of reference.*or pass --force"),
        (with_value("DoseGridScaling", 2.8e-8), "is a dose of another prescription, place or unit"),
        (with_value("DoseGridScaling", 1.0), "DoseGridScaling must be wrong"),
        (with_value("Modality", "CT"), "."),
    ],
)
def test_an_rtdose_that_is_no_aim_is_refused_in_a_sentence(
    tmp_path: Path, task: tuple[Case, GoalSheet], change: Callable[[pydicom.Dataset], None], words: str
) -> None:
    case, sheet = task
    file = rtdose(tmp_path / "d.dcm", blob(FINE), case, change)
    if words == ".":  # the class of the object decides, not its modality
        assert prior_from_file(file, case, sheet).doses
        return
    with pytest.raises(InputError, match=words) as refused:
        prior_from_file(file, case, sheet)
    assert "\n" not in str(refused.value)


def test_contradictions_can_be_forced_and_are_named(tmp_path: Path, task: tuple[Case, GoalSheet]) -> None:
    case, sheet = task
    file = rtdose(tmp_path / "d.dcm", blob(FINE), case, with_value("PatientID", "another"))
    (check,) = prior_from_file(file, case, sheet, force=True).checks
    assert check.warns and "forced in spite of: the dose has another patient ID than the CT" in check.why


def flipped(axis: int) -> Callable[[NDArray], NDArray]:
    return lambda gy: np.ascontiguousarray(np.flip(gy, axis))


def holed(value: float) -> Callable[[NDArray], NDArray]:
    def change(gy: NDArray) -> NDArray:
        out = gy.copy()
        out[3, 4, 5] = value
        return out

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flipped(2), r"mirrored from left to right it would fit"),
        (flipped(1), r"mirrored from front to back it would fit"),
        (flipped(0), r"mirrored from head to feet it would fit"),
        (lambda gy: gy / 51.0, r"D50% of PTV is 1.0 Gy, and 50 Gy are prescribed"),
        (lambda gy: gy / 51.0 * 100, r"D50% of PTV is 100.0 Gy, and 50 Gy are prescribed"),
        (lambda gy: gy * 100, r"reaches 5100 Gy, more than 1000 Gy; give it in Gy"),
        (lambda gy: gy * 60 / 50, r"is a dose of another prescription"),
        (lambda gy: gy * 44 / 51, r"is a dose of another prescription"),
        (holed(np.nan), r"1 voxels of the dose are not finite"),
        (holed(np.inf), r"1 voxels of the dose are not finite"),
        (holed(-0.5), r"the dose falls to -0.5 Gy, at least 0 is needed"),
        (lambda gy: gy[None], r"has the shape \(1, 40, 48, 48\)"),
        (lambda gy: gy[20], r"has the shape \(48, 48\)"),
        (lambda gy: gy.astype(str), r"type <U\d+, numbers are needed"),
        (lambda gy: gy * 0, r"D50% of PTV is 0.0 Gy"),
    ],
)
def test_an_npz_that_is_no_aim_is_refused_in_a_sentence(
    tmp_path: Path, task: tuple[Case, GoalSheet], change: Callable[[NDArray], NDArray], words: str
) -> None:
    case, sheet = task
    file = npz(tmp_path / "d.npz", blob(FINE), dose=change(blob(FINE).gy))
    with pytest.raises(CaseError, match=words) as refused:
        prior_from_file(file, case, sheet)
    assert "d.npz" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spacing_mm": None}, "holds no spacing_mm, so where its dose lies is unknown"),
        ({"spacing_mm": None, "origin_mm": None}, "holds no spacing_mm and no origin_mm"),
        ({"origin_mm": np.zeros(2)}, "origin_mm is not three numbers"),
        ({"spacing_mm": (0.0, 1.0, 1.0)}, "0.05 to 50 mm are possible"),
        ({"spacing_mm": (2.5, 2.5, -3.0)}, "0.05 to 50 mm are possible"),
        ({"origin_mm": (np.nan, 0, 0)}, "origin_mm is not three numbers"),
        ({"dose": None}, "holds origin_mm, spacing_mm and no dose"),
        ({"dose_step_gy": 2.0}, "dose_step_gy must lie in"),
        ({"dose_step_gy": -0.01}, "dose_step_gy must lie in"),
        ({"origin_mm": (-28.75, -58.75, -58.5)}, "its grid holds .* % of PTV"),
        ({"origin_mm": (200.0, 0.0, 0.0)}, "its grid holds 0 % of PTV"),
        ({"origin_mm": (-93.75, -58.75, -58.5)}, "is a dose of another prescription, place or unit"),
    ],
)
def test_an_npz_of_unknown_or_wrong_place_is_refused(
    tmp_path: Path, task: tuple[Case, GoalSheet], changes: dict, words: str
) -> None:
    case, sheet = task
    with pytest.raises(CaseError, match=words):
        prior_from_file(npz(tmp_path / "d.npz", blob(FINE), **changes), case, sheet)


def test_a_dose_outside_the_body_is_refused(tmp_path: Path, task: tuple[Case, GoalSheet]) -> None:
    case, sheet = task
    large = Grid((44, 60, 60), (5.0, 5.0, 6.0), (-147.5, -147.5, -130.0))
    dose = blob(large)
    gy = dose.gy.copy()
    gy[:, :, 45:] = 40.0  # beyond x = 75 mm, where the body ends at 50
    with pytest.raises(CaseError, match=r"% of what gets 25 Gy and more lies outside BODY \(at most 10 %\)"):
        prior_from_file(npz(tmp_path / "d.npz", replace(dose, gy=gy)), case, sheet)


@pytest.mark.parametrize(("factor", "words"), [(1.05, "+7 % off"), (0.93, "-5 % off"), (1.0, None)])
def test_a_level_a_little_off_is_named_and_not_scaled(
    tmp_path: Path, task: tuple[Case, GoalSheet], factor: float, words: str | None
) -> None:
    case, sheet = task
    dose = blob(case.grid, 51.0 * factor)
    prior = prior_from_file(npz(tmp_path / "d.npz", dose), case, sheet)
    assert prior.doses[0].gy.max() == pytest.approx(51.0 * factor)
    why = prior.checks[0].why
    assert (f"{words} the 50 Gy prescribed: the dose is not scaled" in why) if words else why == SILENT


def test_a_file_of_predict_gives_its_chosen_sample_or_its_regression(
    tmp_path: Path, task: tuple[Case, GoalSheet]
) -> None:
    case, sheet = task
    dose = blob(FINE)
    steps = np.rint(dose.gy / 0.01).astype(np.uint16)
    noisy = np.rint(steps * 0.98).astype(np.uint16)
    held = {"dose": None, "mean": noisy, "regression": steps, "dose_step_gy": 0.01}
    prior = prior_from_file(npz(tmp_path / "d.npz", dose, **held), case, sheet)
    assert prior.origin["kind"] == "prediction, regression"
    np.testing.assert_allclose(prior.doses[0].gy, dose.gy, atol=0.006)
    samples = np.stack([steps, np.rint(steps * 1.02).astype(np.uint16)])
    prior = prior_from_file(npz(tmp_path / "e.npz", dose, **held, samples=samples, chosen=1), case, sheet)
    assert prior.origin["kind"] == "prediction, sample 1"
    np.testing.assert_allclose(prior.doses[0].gy, 1.02 * dose.gy, atol=0.011)
    prior = prior_from_file(npz(tmp_path / "f.npz", dose, **held, samples=samples, chosen=-1), case, sheet)
    assert prior.origin["kind"] == "prediction, regression"


def test_a_training_case_must_have_the_case_s_ct(tmp_path: Path, task: tuple[Case, GoalSheet]) -> None:
    case, sheet = task
    own = replace(aside(), reference_dose=blob(aside().grid))
    file = save_case(tmp_path / "c.npz", TrainingCase(own, own.body.mask))
    prior = prior_from_file(file, case, sheet)
    assert prior.origin["kind"] == "training case" and not prior.checks[0].warns
    other = replace(own, hu=np.where(own.body.mask, 900.0, -1000.0))
    with pytest.raises(
        CaseError, match="CT of the training case is not that of the case, it differs by 900 HU"
    ):
        prior_from_file(save_case(tmp_path / "o.npz", TrainingCase(other, own.body.mask)), case, sheet)
    bare = replace(own, reference_dose=None)
    with pytest.raises(CaseError, match="holds no dose; give one with a dose"):
        prior_from_file(save_case(tmp_path / "b.npz", TrainingCase(bare, own.body.mask)), case, sheet)


def test_an_openkbp_patient_gives_its_dose_on_its_own_axes(tmp_path: Path) -> None:
    parts = openkbp_arrays(1)
    bits = parts["structures"]
    dose = np.where(bits >> 15 & 1, 2000, 0)
    for name, gy in (("PTV56", 5700), ("PTV70", 7100)):
        from vmat_diffusion.dataset.openkbp import NAMES

        dose[(bits >> list(NAMES).index(name) & 1).astype(bool)] = gy
    parts["dose_cGy"] = dose.astype(np.uint16)
    file = write_openkbp(tmp_path / "pt_201.npz", parts)
    case, sheet = fit_to_each_other(read_openkbp(file).case, load_goals(GOALS))
    prior = prior_from_file(file, case, sheet)
    assert prior.origin["kind"] == "OpenKBP patient"
    assert prior.origin["levels_gy"] == pytest.approx({"PTV_70": 71.0, "PTV_56": 57.0}, abs=0.1)
    # On its axes alone, as a predictor may write it, the same dose has no place.
    np.savez(tmp_path / "bare.npz", dose=dose / 100.0)
    with pytest.raises(CaseError, match="holds no spacing_mm and no origin_mm"):
        prior_from_file(tmp_path / "bare.npz", case, sheet)
    other = write_openkbp(tmp_path / "pt_202.npz", {**parts, "ct": np.full_like(parts["ct"], 1500)})
    with pytest.raises(CaseError, match="the CT of the OpenKBP patient is not that of the case"):
        prior_from_file(other, case, sheet)


def test_files_that_are_no_dose_are_refused(
    tmp_path: Path, task: tuple[Case, GoalSheet], folder: Path
) -> None:
    case, sheet = task
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "text.dcm").write_text("hello")
    np.savez(tmp_path / "objects.npz", dose=np.array([{"a": 1}], object))
    for path, words in (
        (
            tmp_path / "none.dcm",
            "prior .*none.dcm does not exist; give goals, diffusion, or an RTDOSE or npz",
        ),
        (tmp_path, "is a folder; give goals, diffusion"),
        (tmp_path / "text.npz", "is no readable npz file"),
        (tmp_path / "objects.npz", "holds objects, which are never loaded"),
        (tmp_path / "text.dcm", "text.dcm"),
        (next(folder.glob("*.dcm")), "."),
    ):
        with pytest.raises(InputError, match=words) as refused:
            prior_from_file(path, case, sheet)
        assert "\n" not in str(refused.value)


def test_a_run_aims_at_the_dose_and_says_so(folder: Path, tmp_path: Path, optimiser: StandIn) -> None:
    calls = optimiser()
    file = npz(tmp_path / "Smith_John.npz", blob(FINE))
    asked = plan_settings(goals=SHEET, prior=str(file))
    run = plan_case(folder, tmp_path / "out", asked, tools=optimiser.tools)
    np.testing.assert_allclose(calls[0]["target"].gy, blob(FINE).gy, rtol=1e-6)
    text = (tmp_path / "out" / "run.json").read_text()
    record = json.loads(text)
    assert record["prior"]["used"] and record["prior"]["kind"] == "npz dose"
    assert record["settings"]["prior"].startswith("file ") and "Smith" not in text
    check = next(c for c in run.verdict.checks if c.name == AIM)
    assert check.passed and check.warns and run.passed
    assert SILENT in (tmp_path / "out" / "report.html").read_text()


def test_a_wrong_prior_leaves_nothing_behind(folder: Path, tmp_path: Path, optimiser: StandIn) -> None:
    calls = optimiser()
    for prior in (str(tmp_path / "none.dcm"), "difusion"):
        with pytest.raises(CaseError, match="does not exist; give goals, diffusion, or an RTDOSE"):
            plan_case(
                folder, tmp_path / "out", plan_settings(goals=SHEET, prior=prior), tools=optimiser.tools
            )
    assert not calls and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"3 candidates need as many doses .* the prior d\.npz does not"):
        plan_settings(goals=SHEET, prior="a/d.npz", candidates=3)
    with pytest.raises(InputError, match="--force is for a plan or dose that contradicts the case"):
        plan_settings(goals=SHEET, force=True)
    assert plan_settings(goals=SHEET, force=True, prior="d.dcm").force
