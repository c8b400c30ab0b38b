"""One volume in one file: NIfTI by nibabel, NRRD by our own few lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.files import why_no_file
from vmat_diffusion.geometry import Grid
from vmat_diffusion.volumes.axes import on_patient_axes
from vmat_diffusion.volumes.nrrd import read_nrrd, write_nrrd

# The first is the one that is written.
ENDINGS = {"nifti": (".nii.gz", ".nii"), "nrrd": (".nrrd",)}
_VOXELS_MAX = 2**29
# NIfTI's axes run to the patient's right and front; ours to the left and back.
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class FileVolume:
    """Values `[z, y, x]` on their grid."""

    values: NDArray
    grid: Grid


def _nibabel() -> object:
    try:
        import nibabel
    except ImportError:
        raise InputError(
            "nibabel is not installed, which NIfTI needs; install vmat-diffusion[volumes]"
        ) from None
    return nibabel


def write_volume(path: Path, values: NDArray, grid: Grid) -> Path:
    """Write values `[z, y, x]` of 8 to 32 bits in the format that the path's ending names."""
    if path.name.endswith(ENDINGS["nrrd"]):
        write_nrrd(path, values, grid)
        return path
    nibabel = _nibabel()
    matrix = np.diag([*grid.spacing_mm, 1.0])
    matrix[:3, 3] = grid.origin_mm
    image = nibabel.Nifti1Image(np.transpose(values), _TO_LPS @ matrix, dtype=values.dtype)  # type: ignore[attr-defined]
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    image.to_filename(path)
    return path


def read_volume(path: Path) -> FileVolume:
    """The volume in a file, on the patient's axes. Raises CaseError for one that cannot be used."""
    if not path.is_file():
        raise CaseError(f"{path.name} {why_no_file(path)}; give a NIfTI or NRRD file")
    if path.name.endswith(ENDINGS["nrrd"]):
        values, to_lps = read_nrrd(path)
    elif path.name.endswith(ENDINGS["nifti"]):
        values, to_lps = _read_nifti(path)
    else:
        raise CaseError(f"{path.name} is neither NIfTI (.nii, .nii.gz) nor NRRD (.nrrd); convert it")
    return FileVolume(*on_patient_axes(values, to_lps, path.name))


def _read_nifti(path: Path) -> tuple[NDArray, NDArray[np.float64]]:
    nibabel = _nibabel()
    try:
        image = nibabel.load(path)  # type: ignore[attr-defined]
        shape = tuple(int(n) for n in image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or not 0 < int(np.prod(shape, dtype=object)) <= _VOXELS_MAX:
            raise CaseError(
                f"{path.name} is no volume of three axes and at most {_VOXELS_MAX} voxels; crop it"
            )
        values = np.asanyarray(image.dataobj).reshape(shape)
        return values, _TO_LPS @ np.asarray(image.affine, float)
    except (CaseError, MemoryError):
        raise
    except Exception as fault:  # nibabel raises every kind of exception for damaged files
        raise CaseError(
            f"{path.name} is no valid NIfTI file ({type(fault).__name__}); write it again"
        ) from None
