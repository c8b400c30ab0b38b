"""What made a plan: versions, settings, inputs and the memory it took. Codes and hashes, no names."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from vmat_diffusion import __version__
from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.goals import goal_sheet_names
from vmat_diffusion.files import content_hash, shipped_or_code
from vmat_diffusion.machine import machine_names
from vmat_diffusion.options import Origins
from vmat_diffusion.origin import uid_code
from vmat_diffusion.workflow.settings import GenerateSettings, PlanSettings, PredictSettings, QaSettings

_PACKAGES = ("numpy", "scipy", "torch", "numba", "pydicom", "matplotlib")


def provenance(case_folder: Path, case: Case, settings: PlanSettings) -> dict[str, Any]:
    """What is needed to make a planning run again."""
    return {
        **case_provenance(case_folder, case),
        "settings": settings_record(settings),
        **origins_record(settings.origins),
    }


def origins_record(origins: Origins | None) -> dict[str, Any]:
    """Where the values of the settings came from, and the code of the site's profile; None without one."""
    return {
        "profile": origins.profile or None if origins else None,
        "origins": dict(origins.of) if origins else {},
    }


def profile_shown(origins: Origins | None, *, shareable: bool) -> dict[str, str] | None:
    """What a report says of the site's profile: its code, and unless it is to be shared its title."""
    if origins is None or not origins.profile:
        return None
    return {"title": "" if shareable else origins.title, "code": origins.profile}


def settings_record(
    settings: PlanSettings | PredictSettings | QaSettings | GenerateSettings,
) -> dict[str, Any]:
    """Settings as plain data: what is shipped by name, files of the user by the hash of their contents."""
    shipped = {
        "machine": machine_names(),
        "goals": goal_sheet_names(),
        "weights": ("shipped",),
        "generator": ("shipped",),
        "prior": ("goals", "diffusion"),
    }
    values = {name: value for name, value in asdict(settings).items() if name != "origins"}
    for name in ("mapping", "ct_table", "gate", "improve", *shipped):
        if name in values:
            values[name] = shipped_or_code(values[name], shipped.get(name, ()))
    return values


def case_provenance(source: Path, case: Case) -> dict[str, Any]:
    """Versions and inputs; `source` is a file or a folder. Codes and hashes, no names or dates of birth."""
    return {
        "program": program_record(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": package_versions(),
        "inputs": {
            "case": case.id,
            "patient_position": case.patient_position,
            "uid_hashes": {
                "study": uid_code(case.source.study_uid),
                "series": uid_code(case.source.series_uid),
                "structure_set": uid_code(case.source.structure_set_uid),
                "frame_of_reference": uid_code(case.source.frame_of_reference_uid),
            },
            "sha256": content_hash(source),
            "steps": list(case.source.steps),
            "ct_table": {"hu": list(case.ct_table.hu), "g_cm3": list(case.ct_table.g_cm3)},
        },
    }


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that a result depends on."""
    return {name: _version(name) for name in _PACKAGES}


def program_record() -> dict[str, str | None]:
    """What a record says of the program that made it."""
    return {"name": "vmat-diffusion", "version": __version__, "git": git_revision()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Commit of the source tree this package runs from, `+` if changed; None if it is no git checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        revision, status = (
            subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+" if status else "")


def peak_gb() -> float | None:
    """The most memory this process has held so far, in GB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e9, 2)
