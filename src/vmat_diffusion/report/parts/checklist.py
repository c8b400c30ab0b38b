"""What a person looks at before signing: the items of MPPG 11.a that apply, each with its evidence.

Items after Xia et al., J Appl Clin Med Phys 22(9):4, 2021 (AAPM MPPG 11.a), table 8, in own words and order,
joined where one look answers several. What the program does not know is said, not left out.
"""

from __future__ import annotations

from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.geometry import mask_bounds_mm
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa import Verdict
from vmat_diffusion.report.document import Box, Cell, Table
from vmat_diffusion.report.parts.summary import Identity

_BOX = "☐"


def checklist(
    case: Case,
    plan: Plan,
    dose: Dose,
    *,
    identity: Identity,
    prescription: Prescription | None,
    verdict: Verdict | None,
    goals: Box,
    delivery: Box,
) -> Table:
    """Items, what the report says of each, where, and a box to tick."""
    x, y, z = plan.isocenter_mm
    number = len(case.source.image_uids)
    levels = (
        ", ".join(f"{n} {gy:g} Gy" for n, gy in prescription.target_gy.items())
        if prescription
        else "not given"
    )
    overrides = case.source.density_overrides
    warnings = sum(c.warns for c in verdict.checks) if verdict else 0
    gate = "gate" if verdict else ""
    rows = [
        ("Patient: name, record number, birth date", _patient(case, identity), "summary"),
        (
            "The right CT and structure set",
            f"{number} images; codes of series and structure set; steps taken while reading"
            if number
            else "codes",
            "provenance",
        ),
        (
            "Prescription as the physician wrote it",
            f"{levels} in {plan.fractions} fractions",
            "summary",
        ),
        (
            "Isocentre and shift from the reference marks",
            f"one isocentre for all beams at {x:.1f}, {y:.1f}, {z:.1f} mm; the shift is to be documented "
            f"by hand",
            "summary",
        ),
        ("Patient position", plan.patient_position, "summary"),
        ("Dose grid holds all contours, spacing fits", _grid(case, dose), "summary"),
        (
            "CT table; density overrides",
            f"{len(overrides)} overrides" if overrides else "no overrides",
            "summary",
        ),
        ("Goals met; misses explained", goals.heading.lstrip("✓✗ "), "goals"),
        (
            "DVH, isodoses, hot spots; conformity where it is asked",
            "histograms, planes at isocentre and maximum",
            "planes",
        ),
        (
            "Beam names, angles, jaws, MU as is the custom",
            f"{len(plan.arcs)} beams, {plan.total_mu:.1f} MU",
            "beams",
        ),
        ("Apertures fit the targets", "beam’s eye view of every beam", "beams"),
        (
            "Deliverable; warnings dealt with",
            f"{delivery.heading.lstrip('✓✗ ')}; {warnings} warnings",
            gate,
        ),
        ("Independent dose agrees", _independent(verdict), gate),
        ("Errors of the linac; complexity", "robustness table, metrics beside other plans", "complexity"),
        ("Clearance of gantry, couch and patient", "not checked by the program", ""),
        ("Couch, bolus, supports", "only what lies in the body contour is tissue; no bolus is planned", ""),
        ("Implanted devices; dose of earlier treatments", "not known to the program", ""),
        ("Limits other than the usual; versions; profile", "banners and facts", "summary"),
    ]
    return Table.of(
        "Tick what was looked at. After AAPM MPPG 11.a, table 8; what belongs to the record-and-verify "
        "system "
        "(schedule, imaging, set-up notes, approvals there) is not in a plan and not listed.",
        ("Item", "What the report says", "Where", "Seen"),
        [
            (item, said, Cell("here", section=place) if place else Cell("–"), Cell(_BOX, bold=True))
            for item, said, place in rows
        ],
    )


def _patient(case: Case, identity: Identity) -> str:
    if identity.patient:
        return "; ".join(value for _, value in identity.patient)
    return f"case {case.id}; names are in the DICOM files alone"


def _grid(case: Case, dose: Dose) -> str:
    """Which targets and organs the dose grid does not hold, and its spacing."""
    low, high = dose.grid.bounds_mm
    beyond = []
    for s in case.structures.values():
        if s.role in ("target", "organ") and s.mask.any():
            own_low, own_high = mask_bounds_mm(s.mask, case.grid)
            inside = all(a >= b - 1e-3 for a, b in zip(own_low, low, strict=True))
            if not (inside and all(a <= b + 1e-3 for a, b in zip(own_high, high, strict=True))):
                beyond.append(s.name)
    spacing = " × ".join(f"{s:g}" for s in dose.grid.spacing_mm)
    if not beyond:
        return f"{spacing} mm; holds all targets and organs"
    return f"{spacing} mm; reaches not all of {', '.join(beyond)}"


def _independent(verdict: Verdict | None) -> str:
    """The gamma rates of the gate."""
    rates = (
        [c for c in verdict.checks if c.name.startswith("gamma") and c.value is not None] if verdict else []
    )
    if not rates:
        return "no independent dose"
    return "; ".join(f"{c.name} {c.value:.1f} {c.unit} ({c.word})" for c in rates)
