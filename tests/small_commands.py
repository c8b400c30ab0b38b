"""The commands in settings that take seconds, to be killed, starved of disk and memory, and run again."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_files import write_patient
from raw_patients import raw_patient
from small_case import small_case
from tiny_model import tiny_model
from training_cases import save_dataset, small_training
from training_runs import small_dataset

from vmat_diffusion.dicom import write_case
from vmat_diffusion.diffusion.model import save_model

PROGRAM = (sys.executable, "-m", "vmat_diffusion")
STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_program.py")))
SHEET = (
    'title = "t"\nsite = "test"\nsource = "test"\nfractions = 25\n[prescription_gy]\nPTV = 50\n'
    '[normalization]\nPTV = "D95% = 52 Gy"\n[[goals]]\nstructure = "PTV"\ngoal = "D95% >= 47 Gy"\n'
    'priority = 1\nsource = "test"\n'
)
RECIPE = """
network = { widths = [8, 8, 16, 16], blocks = 1, heads = 2, condition = 16 }
precision = "32-true"
seed = 3
log_every = 2
validate_every = 4
gamma_every = 0
checkpoint_minutes = 0.001

[[stages]]
samples = 12
learning_rate = 1e-3
warm_up = 2
losses = { l1 = 1.0, dvh = 0.1 }

[[stages]]
role = "residual"
samples = 8
losses = { residual = 1.0 }
"""


@dataclass(frozen=True)
class Inputs:
    """Where the commands read, made once."""

    work: Path

    def make(self) -> Inputs:
        """Write all inputs."""
        work = self.work
        work.mkdir(parents=True, exist_ok=True)
        write_case(work / "case", small_case())
        for k in range(3):
            raw_patient(work / "raw" / f"case_{k:04d}", number=k)
        write_patient(work / "patients")
        small_dataset(work / "data", train=2, validation=1)
        save_dataset(work / "cases", [small_training()])
        save_model(work / "weights.safetensors", tiny_model())
        (work / "sheet.toml").write_text(SHEET)
        (work / "recipe.toml").write_text(RECIPE)
        return self

    def command(self, name: str, out: Path) -> list[str]:
        """A command that writes into `out`; `plan` with a stand-in for optimiser and independent engine."""
        work = self.work
        words: dict[str, tuple[Any, ...]] = {
            "plan": (*STAND_IN, "plan", work / "case", "--goals", work / "sheet.toml"),
            "preprocess": (
                *(*PROGRAM, "preprocess", "--raw", work / "raw"),
                *("--cluster", "serial", "--spacing-mm", 2, 2, 2.5),
            ),
            "simulate": (
                *(*PROGRAM, "simulate", "--data", work / "cases", "--cluster", "serial"),
                *("--plans-per-case", 2, "--grid-mm", 8, "--effort", 0.01),
            ),
            "train": (
                *(*PROGRAM, "train", "--config", work / "recipe.toml", "--data", work / "data"),
                *("--loaders", 0),
            ),
            "deidentify": (*PROGRAM, "deidentify", work / "patients", "--key", "0123456789abcdef"),
            "predict": (
                *(*PROGRAM, "predict", work / "case", "--weights", work / "weights.safetensors"),
                *("--goals", work / "sheet.toml", "--samples", 2, "--steps", 2),
            ),
        }
        return [*map(str, words[name]), "--out", str(out)]


# What tells a command to go on, or to write over what is there.
AGAIN = {
    "plan": ("--overwrite",),
    "preprocess": ("--resume",),
    "simulate": ("--resume",),
    "train": ("--resume",),
    "deidentify": (),
    "predict": ("--overwrite",),
}
