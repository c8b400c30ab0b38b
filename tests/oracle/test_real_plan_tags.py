"""What our plan and dose files say, against the RTPLANs of five planning systems, attribute by attribute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from network_peers import planning_run
from pydicom import dcmread
from pydicom.dataset import Dataset

PLANS = Path(__file__).parents[3].parent / "shared" / "data" / "rtplans"
# What most systems write and we do not, each with its reason.
LEFT_OUT = {
    "InstitutionName": "names a clinic",
    "BeamSequence.InstitutionName": "names a clinic",
    "BeamSequence.InstitutionAddress": "names a clinic",
    "BeamSequence.InstitutionalDepartmentName": "names a clinic",
    "BeamSequence.Manufacturer": "written where the machine's file says it",
    "BeamSequence.ManufacturerModelName": "our machine is a model of the beam, not of a product",
    "BeamSequence.PrimaryFluenceModeSequence.FluenceModeID": "written for unflattened beams",
    "BeamSequence.BeamDescription": "free text",
    "ContentDate": "of anonymisers",
    "ContentTime": "of anonymisers",
    "DeidentificationMethod": "of anonymisers",
    "PrescriptionDescription": "free text; the prescription is in the dose references",
}


def paths(dataset: Dataset, before: str = "") -> Iterator[str]:
    """The keywords of all public attributes that are not the patient's, with those of their sequences."""
    for element in dataset:
        if element.tag.is_private or element.keyword.startswith("Patient"):
            continue
        yield before + element.keyword
        if element.VR == "SQ":
            for item in element.value:
                yield from paths(item, f"{before}{element.keyword}.")


def delivered(dataset: Dataset) -> Dataset:
    """The plan without set-up fields, which are no part of a treatment."""
    dataset.BeamSequence = [b for b in dataset.BeamSequence if b.TreatmentDeliveryType == "TREATMENT"]
    return dataset


@pytest.fixture(scope="module")
def real() -> list[Dataset]:
    files = sorted(PLANS.glob("*.dcm"))
    if len(files) < 5:
        pytest.skip(f"the five real plans are not in {PLANS.name}")
    return [delivered(dcmread(file)) for file in files]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return dcmread(planning_run(tmp_path_factory.mktemp("made") / "run") / "RP.dcm")


def test_what_three_of_five_systems_write_is_written_or_left_out_for_a_reason(
    real: list[Dataset], ours: Dataset
) -> None:
    count = Counter(path for plan in real for path in set(paths(plan)))
    usual = {path for path, systems in count.items() if systems >= 3}
    missing = usual - set(paths(ours)) - LEFT_OUT.keys()
    assert missing == {"FractionGroupSequence.ReferencedBeamSequence.BeamDose"}  # of plans with a dose


def test_beam_doses_of_real_plans_add_up_to_about_the_fraction(real: list[Dataset]) -> None:
    """BeamDose is Gy per fraction, not of the course: ours has the same meaning."""
    for plan in real:
        if "DoseReferenceSequence" not in plan:
            continue
        group = plan.FractionGroupSequence[0]
        total = sum(float(b.BeamDose) for b in group.ReferencedBeamSequence if "BeamDose" in b)
        each = float(plan.DoseReferenceSequence[0].TargetPrescriptionDose) / group.NumberOfFractionsPlanned
        assert 0.5 * each < total < 2.5 * each


def test_dose_reference_coefficients_are_the_meterset_weights_as_in_real_plans(
    real: list[Dataset], ours: Dataset
) -> None:
    for plan in [*real, ours]:
        for beam in plan.BeamSequence:
            for point in beam.ControlPointSequence:
                for item in point.get("ReferencedDoseReferenceSequence", [])[:1]:
                    if plan.ManufacturerModelName == "DosePlanning":
                        continue  # Brainlab's are the dose's share, not the meterset's
                    assert item.CumulativeDoseReferenceCoefficient == pytest.approx(
                        float(point.CumulativeMetersetWeight), abs=1e-9
                    )
