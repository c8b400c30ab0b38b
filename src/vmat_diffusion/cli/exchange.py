"""The commands that exchange cases with image analysis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vmat_diffusion.cli.display import show, stdout_kept
from vmat_diffusion.cli.fields import TO_FOLDER, CaseFolder, Facts
from vmat_diffusion.options import Option, settings

_NewFolder = Annotated[Path, Field(description="Where to write: a new or empty folder."), TO_FOLDER]


@settings
class ExportNiftiOptions(Facts):
    """What `export nifti` takes."""

    case: CaseFolder
    out: _NewFolder
    dose: Annotated[
        Path | None,
        Field(description="RTDOSE file: the dose to write with the case; by default its own, if it has one."),
        Option(metavar="RD.dcm"),
    ] = None
    format: Annotated[Literal["nifti", "nrrd"], Field(description="Format of the files.")] = "nifti"
    layout: Annotated[
        Literal["masks", "nnunet"],
        Field(description="A file for each structure, or nnU-Net's folders with one file of labels."),
    ] = "masks"


def export_nifti(options: ExportNiftiOptions) -> None:
    """Write a case as NIfTI or NRRD volumes: the CT, a mask for each structure, the dose."""
    from vmat_diffusion.dicom import read_case, read_dose
    from vmat_diffusion.workflow.exchange import export_case
    from vmat_diffusion.workflow.output import require_apart

    require_apart(options.out, options.case, options.dose)
    with stdout_kept():
        case = read_case(options.case)
        dose = read_dose(options.dose) if options.dose else case.reference_dose
        done = export_case(case, options.out, kind=options.format, layout=options.layout, dose=dose)
    show(json.dumps(done.summary()) if options.json else "\n".join(map(str, done.files)))


@settings
class ImportNiftiOptions(Facts):
    """What `import nifti` takes."""

    folder: Annotated[
        Path,
        Field(
            description="Folder of volumes: ct with masks, TotalSegmentator's segmentations, or nnU-Net's."
        ),
        Option(positional=True, metavar="DIR"),
    ]
    out: _NewFolder


def import_nifti(options: ImportNiftiOptions) -> None:
    """Make a case of NIfTI or NRRD volumes: a DICOM CT with structure set, and RD.dcm of a dose."""
    from vmat_diffusion.workflow.exchange import import_volumes

    with stdout_kept():
        done = import_volumes(options.folder, options.out)
    show(json.dumps(done.summary()) if options.json else "\n".join(map(str, done.files)))
