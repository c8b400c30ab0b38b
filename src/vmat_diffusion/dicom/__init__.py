"""DICOM in and out: the only package that knows pydicom."""

from vmat_diffusion.dicom.case_read import read_case
from vmat_diffusion.dicom.case_write import files_of_case, write_case
from vmat_diffusion.dicom.dataset import instance_uid, patient_named
from vmat_diffusion.dicom.inspection import inspect
from vmat_diffusion.dicom.rtdose_read import read_dose, read_plane_or_volume
from vmat_diffusion.dicom.rtdose_write import write_dose
from vmat_diffusion.dicom.rtplan_read import read_plan
from vmat_diffusion.dicom.rtplan_write import as_written, write_unjudged_plan
from vmat_diffusion.dicom.structure_set.overrides import refuse_density_overrides
from vmat_diffusion.dicom.structure_set.unknown_names import unknown_names

__all__ = [
    "as_written",
    "files_of_case",
    "inspect",
    "instance_uid",
    "patient_named",
    "read_case",
    "read_dose",
    "read_plan",
    "read_plane_or_volume",
    "refuse_density_overrides",
    "unknown_names",
    "write_case",
    "write_dose",
    "write_unjudged_plan",
]
