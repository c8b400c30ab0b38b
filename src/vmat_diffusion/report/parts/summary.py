"""Page 1 of the report: whose plan it is, which plan, how it was made, and what is not as usual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vmat_diffusion.case import SCHNEIDER, Case, CtTable, Dose, Prescription
from vmat_diffusion.machine import Machine
from vmat_diffusion.origin import without_uids
from vmat_diffusion.plan import Plan, delivery_s
from vmat_diffusion.qa import Verdict
from vmat_diffusion.qa.limits import GateSettings
from vmat_diffusion.report.document import Facts, Table, Text

# What a run may be allowed against the rule, by the name of the setting.
_ALLOWED = {
    "force": "files that contradict each other were accepted (--force)",
    "allow_outside_body": "targets may reach outside the body (--allow-outside-body)",
    "ignore_density_overrides": "density overrides of the structure set were ignored "
    "(--ignore-density-overrides)",
}
_ORIGINS = ("command line", "caller", "options file", "profile", "goal sheet")
NO_PLAN_FILE = "no plan file was written"


@dataclass(frozen=True)
class Identity:
    """Which files a report belongs to; `patient` are names and values, only where they were asked for."""

    plan_uid: str = ""
    dose_uid: str = ""
    patient: tuple[tuple[str, str], ...] = ()


def identity_facts(case: Case, plan: Plan, identity: Identity) -> Facts:
    """Whose plan it is and which one."""
    source = case.source
    codes = [
        ("CT series", source.series_uid),
        ("Structure set", source.structure_set_uid),
    ]
    return Facts(
        (
            *(identity.patient or (("Patient", "not named here; see the DICOM files, or use --identity"),)),
            ("Case", case.id),
            ("Site", case.site or "not given"),
            ("Plan", plan.label),
            ("Plan UID", identity.plan_uid or NO_PLAN_FILE),
            *((("Dose UID", identity.dose_uid),) if identity.dose_uid else ()),
            *((name, f"code {without_uids(uid)}") for name, uid in codes if uid),
        )
    )


def prescription_table(plan: Plan, prescription: Prescription | None) -> Table | Text:
    """The prescription of each target, of the course and per fraction."""
    if prescription is None or not prescription.target_gy:
        return Text(f"Prescription: not given in {plan.fractions} fractions.")
    levels = sorted(prescription.target_gy.items(), key=lambda item: -item[1])
    return Table.of(
        "Prescription",
        ("Target", "Course", "Fractions", "Per fraction"),
        [(name, f"{gy:g} Gy", str(plan.fractions), f"{gy / plan.fractions:.4g} Gy") for name, gy in levels],
    )


def plan_facts(case: Case, plan: Plan, machine: Machine, dose: Dose, provenance: Mapping[str, Any]) -> Facts:
    """How the plan is delivered, computed and made."""
    minutes, rest = divmod(round(delivery_s(plan, machine)), 60)
    spacing = " × ".join(f"{s:g}" for s in dose.grid.spacing_mm)
    x, y, z = plan.isocenter_mm
    engine = str(dose.provenance.get("engine", ""))
    pairs = [
        ("Machine", f"{machine.title or machine.name} ({machine.name})"),
        ("Monitor units", f"{plan.total_mu:.1f} MU per fraction"),
        ("Beam-on time", f"{minutes} min {rest:02d} s, without set-up between beams"),
        ("Isocentre (x, y, z)", f"{x:.1f}, {y:.1f}, {z:.1f} mm, DICOM patient coordinates"),
        ("Patient position", plan.patient_position),
        ("Dose engine", engine),
        ("Dose grid", f"{spacing} mm, dose to {dose.medium}, whole course"),
        ("Highest dose", f"{float(dose.gy.max()):.2f} Gy"),
        ("Normalisation", str(provenance.get("normalization", ""))),
        ("Arcs", str((provenance.get("arrangement") or {}).get("text", ""))),
        ("CT to density", density_text(case.ct_table)),
        ("Profile", profile_text(provenance)),
        ("Chosen by", chosen_text(provenance)),
        ("Program", program_text(provenance)),
        ("Made", str(provenance.get("created", ""))),
    ]
    return Facts(tuple((name, value) for name, value in pairs if value))


def density_text(table: CtTable) -> str:
    """The whole table, HU to g/cm3."""
    whose = "shipped (Schneider 1996)" if table == SCHNEIDER else "the site’s own"
    points = "; ".join(f"{hu:g}: {g:g}" for hu, g in zip(table.hu, table.g_cm3, strict=True))
    return f"{whose}, HU: g/cm³, linear between: {points}"


def program_text(provenance: Mapping[str, Any]) -> str:
    """Name, version and commit of the program, and the versions of what it rests on."""
    program = provenance.get("program")
    if isinstance(program, Mapping):
        commit = f" ({str(program['git'])[:12]})" if program.get("git") else ""
        named = f"{program.get('name')} {program.get('version')}{commit}"
    else:
        named = str(program or "")
    packages = provenance.get("packages") or {}
    versions = [f"{name} {version}" for name, version in packages.items() if version]
    python = [f"Python {provenance['python']}"] if provenance.get("python") else []
    return ", ".join(part for part in (named, *python, *versions) if part)


def profile_text(provenance: Mapping[str, Any]) -> str:
    """The site's profile by its title and the code of its contents."""
    profile = provenance.get("profile")
    if not profile:
        return "none"
    return f"{profile['title']} ({profile['code']})" if profile.get("title") else str(profile["code"])


def chosen_text(provenance: Mapping[str, Any]) -> str:
    """Which settings came from where; those left at their defaults are not named."""
    origins = provenance.get("origins") or {}
    by = [(whose, [name for name, origin in origins.items() if origin == whose]) for whose in _ORIGINS]
    return "; ".join(f"{whose}: {', '.join(names)}" for whose, names in by if names)


def exceptions(verdict: Verdict | None, provenance: Mapping[str, Any]) -> list[Text]:
    """What is not as usual, each a banner: looser limits, other limits, rules that an option lifted."""
    found = []
    looser = verdict.looser if verdict else ""
    if looser:
        found.append(Text(f"LOOSER LIMITS: {looser}", "banner"))
    gate = provenance.get("gate") or {}
    shipped = GateSettings()
    other = [
        f"{f.name} {_shown(gate[f.name])} ({_shown(getattr(shipped, f.name))})"
        for f in fields(GateSettings)
        if f.name in gate and gate[f.name] != getattr(shipped, f.name) and f"{f.name} " not in looser
    ]
    if other:
        found.append(Text(f"Limits of the gate other than the shipped ones: {', '.join(other)}", "warning"))
    settings = provenance.get("settings") or {}
    allowed = [words for name, words in _ALLOWED.items() if settings.get(name)]
    lifted = [name for name, value in settings.items() if value == "off"]
    if lifted:
        allowed.append(f"limits of the delivery were lifted: {', '.join(lifted)}")
    if allowed:
        found.append(Text(f"By option: {'; '.join(allowed)}", "banner"))
    return found


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | int) and not isinstance(value, bool) else str(value)
