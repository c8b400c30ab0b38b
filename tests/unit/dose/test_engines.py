"""The engines: one interface, and neither loads the other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vmat_diffusion.dose import DoseEngine, MonteCarlo, PencilBeam, dose_engine
from vmat_diffusion.errors import InputError
from vmat_diffusion.machine import load_machine

PACKAGES = {
    "pencil-beam": "vmat_diffusion.dose.pencil_beam",
    "monte-carlo": "vmat_diffusion.dose.monte_carlo",
}
# Loads every module of a package, as its files name them, and prints what of the project is loaded then.
LOAD = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, sys.argv[1] + "."):
    importlib.import_module(module.name)
print("\\n".join(name for name in sys.modules if name.startswith("vmat_diffusion")))
"""


@pytest.mark.parametrize(
    ("loaded", "other"), [("pencil-beam", "monte-carlo"), ("monte-carlo", "pencil-beam")]
)
def test_all_modules_of_an_engine_load_without_the_other(loaded: str, other: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, PACKAGES[loaded]], capture_output=True, text=True, check=True
    )
    names = done.stdout.split()
    assert PACKAGES[loaded] + ".engine" in names
    assert not [name for name in names if name.startswith(PACKAGES[other])]


def test_engines_by_name() -> None:
    machine = load_machine("generic_6mv")
    fast: DoseEngine = dose_engine("pencil-beam", machine)
    slow: DoseEngine = dose_engine("monte-carlo", machine, uncertainty=0.01, max_minutes=2.0, seed=3)
    assert fast == PencilBeam(machine)
    assert slow == MonteCarlo(machine, uncertainty=0.01, max_seconds=120.0, seed=3)
    with pytest.raises(
        InputError, match=r"engine 'collapsed cone' is not known; .*pencil-beam and monte-carlo"
    ):
        dose_engine("collapsed cone", machine)
