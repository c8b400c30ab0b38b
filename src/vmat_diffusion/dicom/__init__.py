"""DICOM in and out: the only package that knows pydicom."""

from vmat_diffusion.dicom.contours import contours_from_mask
from vmat_diffusion.dicom.inspection import Inspection, StructureFound, inspect
from vmat_diffusion.dicom.names import NameTable, load_table
from vmat_diffusion.dicom.read import read_case, read_dose, read_plan
from vmat_diffusion.dicom.write import write_case, write_dose

__all__ = [
    "Inspection",
    "NameTable",
    "StructureFound",
    "contours_from_mask",
    "inspect",
    "load_table",
    "read_case",
    "read_dose",
    "read_plan",
    "write_case",
    "write_dose",
]
