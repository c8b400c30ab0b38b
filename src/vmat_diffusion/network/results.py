"""What is sent of a planning run: the plan only if it passed, the dose, and the report as a PDF."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vmat_diffusion.dicom.attributes import open_dataset, text
from vmat_diffusion.dicom.folder import open_one
from vmat_diffusion.errors import CaseError, InputError, PlanError
from vmat_diffusion.network.document import write_document
from vmat_diffusion.network.letter import letter
from vmat_diffusion.network.storing import Parcel
from vmat_diffusion.workflow.planning.run_files import DOSE_FILE, PLAN_FILE, REPORT_PDF
from vmat_diffusion.workflow.planning.stored_record import read_record

_TITLE = "Planning report"
_REFUSAL = "No plan was made"
_NOTICE = "For research; not for clinical use. Plans are written UNAPPROVED."


def parcels_of_run(run: Path, scratch: Path) -> list[Parcel]:
    """The objects of the folder that `plan` has written; the PDF's is made in `scratch`.

    Raises InputError for a folder without a run, PlanError for a plan that is not the one of a passed verdict
    or not UNAPPROVED.
    """
    record = read_record(run).fields
    if record["training"]:
        raise PlanError("the run is one of a training exercise and is never sent; name a real one")
    outcome = record["verdict"]["outcome"]
    parcels = []
    if outcome == "PASSED":
        parcels.append(_plan(run / PLAN_FILE))
    parcels.append(_parcel(run / DOSE_FILE, "RTDOSE"))
    report = run / REPORT_PDF
    pdf = report.read_bytes() if report.is_file() else letter(_TITLE, _lines(record, outcome))
    document = write_document(scratch / "report.dcm", pdf, _TITLE, beside=run / DOSE_FILE)
    return [*parcels, _parcel(document, "PDF")]


def refusal(sentence: str, *, beside: Path, scratch: Path) -> Parcel:
    """The PDF that says why there is no plan, in the study of the object `beside`."""
    pdf = letter(_REFUSAL, [sentence, "", _NOTICE])
    return _parcel(write_document(scratch / "refusal.dcm", pdf, _REFUSAL, beside=beside), "PDF")


def _plan(file: Path) -> Parcel:
    try:
        found = open_one(file, "RTPLAN")
    except CaseError as fault:
        raise PlanError(f"{PLAN_FILE} of a run that passed cannot be sent ({fault}); plan it again") from None
    if (approval := text(found.dataset, "ApprovalStatus")) != "UNAPPROVED":
        raise PlanError(
            f"{PLAN_FILE} is {approval or 'without an approval status'}; only plans that are UNAPPROVED are "
            "sent: plan the case again"
        )
    return _parcel(file, "RTPLAN")


def _parcel(file: Path, label: str) -> Parcel:
    dataset = open_dataset(file) if file.is_file() else None
    if dataset is None:
        raise InputError(f"{file.name} of the run is not there or no DICOM file; plan the case again")
    return Parcel(file, text(dataset, "SOPClassUID"), text(dataset, "SOPInstanceUID"), label)


def _lines(record: Mapping[str, Any], outcome: str | None) -> Iterator[str]:
    """The verdict, its checks and the goals of a run in a few lines."""
    passed = outcome == "PASSED"
    yield f"Verdict of the gate: {outcome or 'not known'}. " + (
        "The plan is sent with this report, UNAPPROVED." if passed else "No plan is sent, the dose is."
    )
    yield ""
    for check in record["verdict"]["checks"]:
        yield f"{check['name']}: {check['result'].upper()}. {check['why'] or ''}"
    yield ""
    for goal in record["goals"]:
        value = goal["value"]
        shown = "not evaluated" if value is None else f"{value:.2f} {goal['unit'] or ''}".rstrip()
        yield f"{goal['structure']} {goal['goal']}: {shown}, {goal['status']}"
    yield ""
    yield _NOTICE
