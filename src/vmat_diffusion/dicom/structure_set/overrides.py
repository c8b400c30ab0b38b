"""Densities that a structure set prescribes in place of those of the CT.

Neither dose calculation applies them: they are named when the case is read, and whatever computes or judges
a dose refuses the case.
"""

from __future__ import annotations

from pydicom.dataset import Dataset

from vmat_diffusion.case import Case
from vmat_diffusion.dicom.attributes import items, number, text
from vmat_diffusion.errors import CaseError


def overrides_of(observation: Dataset) -> tuple[str, ...]:
    """What an item of RTROIObservationsSequence overrides, such as `REL_ELEC_DENSITY 1`.

    Every property of the standard (PS3.3 C.8.8.8: densities, effective atomic number, composition ...)
    changes the tissue; an item without a value changes nothing.
    """
    out: list[str] = []
    for item in items(observation, "ROIPhysicalPropertiesSequence"):
        kind = text(item, "ROIPhysicalProperty", "unnamed property")
        if kind == "ELEM_FRACTION":
            out.append(kind)
        elif (value := number(item, "ROIPhysicalPropertyValue", float("nan"))) == value:
            out.append(f"{kind} {value:g}")
    return tuple(out)


def refuse_density_overrides(case: Case) -> None:
    """Raise CaseError for a case whose structure set overrides densities: its dose would be another one."""
    told = case.source.density_overrides
    if told:
        raise CaseError(
            f"the structure set overrides the tissue of {told[0]}"
            + (f" and of {len(told) - 1} more" if len(told) > 1 else "")
            + "; doses are computed from CT numbers alone: write it into the CT, remove the override, or "
            "pass --ignore-density-overrides"
        )
