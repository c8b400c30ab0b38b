"""The modules as a whole: no import circle, and no definition that nothing names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from click import Command
from lightning.pytorch import Callback, LightningModule
from pydicom.datadict import tag_for_keyword
from pynetdicom.transport import ThreadedAssociationServer
from reportlab.platypus import BaseDocTemplate
from torch import autograd, nn
from typer.core import TyperGroup
from vulture import Vulture  # type: ignore[import-untyped]
from vulture.core import Item  # type: ignore[import-untyped]

from vmat_diffusion.cli.program import COMMANDS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "vmat_diffusion"
MODULES_MAX = 18
# Packages with more modules, each with its reason.
CROWDED = {"optimize": "four stages that share their terms; its split is still to come"}
# Named by no code of the package, and kept for a reason. Short, and each with its reason.
ALLOWED = {
    "range_g_cm2": "ESTAR's ranges, which the tests hold the stopping powers and electron tracks against",
    "reference_point": "says of a machine's beam for which field its Gy per MU hold",
    "restore_dose": "the way back, by which the error of preparing is measured: benchmarks/preprocess.py",
    "tank_dose": "the shipped beams against scans: the oracle test, benchmarks/beam.py",
    # Dataclasses of which each field goes into a table or a record.
    "achieved_gy free_gy other_organs_gy": "steering of the dose model",
    "dose_medium": "the schema of a training case",
    "d2_gy frame_of_reference goals_judged goals_met source_spacing_mm": "the schema of a case's state",
    "targets_extent_mm volumes_cc": "the schema of a case's state",
    "eps lr": "the schema of an optimiser's state in a checkpoint",
    "shift_sigma_mm turn_sigma_deg": "standard errors of the motion between two doses, for its tests",
    "edge_per_mm leaf_travel_mm leaf_travel_mm_deg mean_area_cm2 small_10mm small_5mm": "complexity",
    "delivery_goals": "a plan of the curve of quality against MU",
    "beam_on_s leaf_motion_mm_deg mean_gantry_speed_deg_s smallest_gap_mm": "complexity",
    "cax_diff_pct gamma_2_2 gamma_3_3 max_diff_pct mean_diff_pct noise_pct": "a reference dose",
    # Attributes that another package reads.
    "preamble": "pydicom",
    "should_stop": "Lightning",
    "useA85": "ReportLab",
    "alt": "the template of the report's page",
    "_root": "typer",
    "row_factory": "sqlite3",
    "acse_timeout connection_timeout dimse_timeout maximum_associations network_timeout": "pynetdicom",
    "require_called_aet require_calling_aet": "pynetdicom",
}
# What they call, no code of the package names.
FOREIGN_BASES = (
    *(BaseDocTemplate, Callback, Command, LightningModule, TyperGroup),
    *(autograd.Function, nn.Module, ThreadedAssociationServer),
)


@pytest.mark.parametrize("folder", ["src", "benchmarks"])
def test_no_import_circle(folder: str) -> None:
    """Imports within functions count, those for types alone do not. A circle raises CycleError."""
    trees = {
        ".".join(path.relative_to(ROOT / folder).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in (ROOT / folder).rglob("*.py")
    }
    assert len(trees) > 5
    graph = {name: set(_imports(tree, trees)) - {name} for name, tree in trees.items()}
    list(TopologicalSorter(graph).static_order())


def _imports(tree: ast.AST, known: dict[str, ast.Module]) -> Iterator[str]:
    """The modules of the same folder that a module imports."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module


def test_a_package_has_few_modules() -> None:
    """More than a reader keeps in mind at once are two ideas, each with a package of its own."""
    folders = {path.parent for path in PACKAGE.rglob("__init__.py")}
    counts = {
        folder.relative_to(PACKAGE).as_posix(): sum(path.stem != "__init__" for path in folder.glob("*.py"))
        for folder in folders
    }
    assert len(counts) > 20
    crowded = {name for name, count in counts.items() if count > MODULES_MAX}
    assert crowded == set(CROWDED)


def test_every_definition_is_reached_from_a_command_or_the_public_api() -> None:
    """Functions, classes, methods, fields, constants; that a test or benchmark uses one is no reason."""
    search = Vulture()
    search.scavenge([str(ROOT / "src")])
    unnamed = {item.name: item for item in search.get_unused_code() if not _named_elsewhere(item)}
    allowed = {name for names in ALLOWED for name in names.split()}
    assert not unnamed.keys() - allowed, [
        f"delete {item.typ} {name}: {item.filename}:{item.first_lineno}"
        for name, item in unnamed.items()
        if name not in allowed
    ]
    assert not allowed - unnamed.keys(), "named now, or gone: no longer an exception"


def _named_elsewhere(item: Item) -> bool:
    """Whether Python, pydicom, the command line or the base of another package names it; or an argument."""
    if item.name.startswith("__"):
        return True
    if item.typ == "attribute":
        return tag_for_keyword(item.name) is not None
    if item.typ == "method":
        return any(hasattr(base, item.name) for base in FOREIGN_BASES)
    if item.typ == "function":
        commands = {command.replace(" ", "_").replace("-", "_") for command in COMMANDS}
        return item.filename.parent.name == "cli" and item.name in commands
    # Vulture is certain of arguments alone; a signature that another package calls has them.
    return bool(item.typ == "variable" and item.confidence == 100)
