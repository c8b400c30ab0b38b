"""What each part of the dose model is worth: small trainings that differ in one thing, on halved grids.

    python benchmarks/ablation.py ENCODED [--samples 1000] [--cases 12] [--rows plain ...] [--out FILE]

ENCODED holds `train` and `validation`, as `vmat-diffusion train` keeps encoded cases. Every row starts from
the same random numbers and sees the same samples in the same order; a row that is done is kept in the file,
so an interrupted run goes on. Scores are OpenKBP's two, on grids of twice the voxel size: good for comparing
rows, not comparable with scores on the full grid.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from computer import today
from figures import file_of, load, load_file, save_file
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vmat_diffusion.cli.display import progress_bar
from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.diffusion.network import DoseNet, Size
from vmat_diffusion.diffusion.process import PredictionTarget, Process
from vmat_diffusion.files import written_whole
from vmat_diffusion.training.losses import dose_l1, dvh_l1, gradient_l1
from vmat_diffusion.training.roles import denoise, regression, residual_base, sample_doses
from vmat_diffusion.training.samples import NO_AUGMENTATION, AugmentationSettings, EncodedCases, Sample
from vmat_diffusion.training.validation import summary, validate

SIZE = Size(widths=(32, 48, 64, 96))
LEARNING_RATE = 2e-3
RESIDUAL_SCALE = 0.08
_STEPS = (1, 2, 4, 8, 50)
_BEAMS = ("projection", "projection_top", "beams_share")
_SIGMOID_WIDTH = 0.02


@dataclass(frozen=True)
class Row:
    """What differs from the plain row; `shares` weighs the losses."""

    role: str = (
        "mean"  # "mean": regression; "dose": diffusion of the dose; "residual": of what the mean lacks
    )
    answer: PredictionTarget = "x0"
    without: tuple[str, ...] = ()
    shapes: bool = False  # masks in place of distances
    goals: float = 0.5
    told: bool = False  # conditioning on the goals when scoring
    size: Size = SIZE
    smooth_voxels: float = 1.0
    shares: Mapping[str, float] = field(default_factory=lambda: {"l1": 1.0, "dvh": 0.25, "gradient": 0.1})


PLAIN = Row()
ROWS: dict[str, Row] = {
    "plain": PLAIN,
    "plain, other random numbers": PLAIN,
    "without beam channels": replace(PLAIN, without=_BEAMS),
    "masks in place of distances": replace(PLAIN, shapes=True),
    "without DVH loss": replace(PLAIN, shares={"l1": 1.0, "gradient": 0.1}),
    "without gradient loss": replace(PLAIN, shares={"l1": 1.0, "dvh": 0.25}),
    "with conformity loss": replace(PLAIN, shares={**PLAIN.shares, "conformity": 0.05}),
    "with energy loss": replace(PLAIN, shares={**PLAIN.shares, "energy": 0.1}),
    "without goals in training": replace(PLAIN, goals=0.0),
    "goals when scoring": replace(PLAIN, told=True),
    "state space in place of attention": replace(PLAIN, size=replace(SIZE, mixing="state space")),
    "diffusion of the dose, noise": replace(PLAIN, role="dose", answer="noise"),
    "diffusion of the dose, v": replace(PLAIN, role="dose", answer="v"),
    "diffusion of the dose, x0": replace(PLAIN, role="dose"),
    "diffusion of the residual, x0": replace(PLAIN, role="residual"),
    "diffusion of the residual, x0, white noise": replace(PLAIN, role="residual", smooth_voxels=0.0),
}
STEPPED = "diffusion of the residual, x0"


def conformity(predicted: Tensor, dose: Tensor, mask: Tensor) -> Tensor:
    """Difference of the volumes above 95 % of the prescription, relative to the wanted one."""

    def volume(d: Tensor) -> Tensor:
        return (torch.sigmoid((d - 0.95) / _SIGMOID_WIDTH) * mask).sum()

    return (volume(predicted) - volume(dose)).abs() / volume(dose).clamp(min=1.0)


def energy(predicted: Tensor, dose: Tensor, mask: Tensor) -> Tensor:
    """Difference of the integral dose, relative to the wanted one."""
    return ((predicted - dose) * mask).sum().abs() / (dose * mask).sum().clamp(min=1.0)


def halved(source: Path, target: Path) -> tuple[Path, ...]:
    """Every encoded case on voxels of twice the size, in the same kind of file."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.npz")):
        if (target / path.name).exists():
            continue
        with np.load(path) as file:
            a = {name: file[name] for name in file.files}
        shape = a["dose"].shape

        def pooled(values: NDArray) -> Tensor:
            t = torch.from_numpy(np.ascontiguousarray(values, np.float32))
            sides = [side for n in t.shape[:-4:-1] for side in (0, n % 2)]
            return F.avg_pool3d(F.pad(t[None], sides, mode="replicate")[0], 2)

        def unpacked(row: NDArray, shape: tuple[int, ...] = shape) -> NDArray:
            return np.unpackbits(row, count=int(np.prod(shape))).reshape(shape)

        masks = [pooled(unpacked(row)[None])[0].numpy() >= 0.5 for row in (a["mask"], *a["masks"])]
        a["volume"] = pooled(a["volume"]).numpy().astype(np.float16)
        a["dose"] = np.rint(pooled(a["dose"][None])[0].numpy() * masks[0]).astype(np.uint16)
        a["voxel_cc"] = a["voxel_cc"] * 8
        a["mask"], a["masks"] = np.packbits(masks[0]), np.stack([np.packbits(m) for m in masks[1:]])
        with written_whole(target / path.name) as part, part.open("wb") as stream:
            np.savez(stream, **a)
    return tuple(sorted(target.glob("*.npz")))


class Trial:
    """One row: its network, and its regression where it diffuses what that lacks."""

    def __init__(self, row: Row, encoding: Encoding, seed: int, mean: Trial | None) -> None:
        torch.manual_seed(seed)
        self.row, self.encoding, self.mean, self.seed = row, encoding, mean, seed
        self.net = DoseNet(len(encoding.channels), encoding.layout.size, row.size)
        self.average = {name: value.detach().clone() for name, value in self.net.named_parameters()}
        self.process = Process(
            answer=row.answer,
            scale=0.5 if mean is None else RESIDUAL_SCALE,
            smooth_voxels=row.smooth_voxels,
            largest=4.0,
        )

    def seen(self, s: Sample) -> Sample:
        """What the row lets its network see of a case."""
        volume = s.volume.clone()
        for k, name in enumerate(self.encoding.channels):
            if name in self.row.without:
                volume[:, k] = 0.0
            elif self.row.shapes and "distance" in name:
                volume[:, k] = (volume[:, k] <= 0).float()
        return replace(s, volume=volume)

    def base(self, s: Sample) -> Tensor:
        """What is taken off the dose before diffusion."""
        return 0.5 * s.mask if self.mean is None else residual_base(self.mean.net, s)

    def loss(self, case: Sample, n: int) -> Tensor:
        s = self.seen(case)
        if self.row.role != "mean":
            return denoise(self.net, self.base(s), s, self.process, (self.seed, n))[1]
        y = regression(self.net, s) * s.mask
        terms: dict[str, Callable[[], Tensor]] = {
            "l1": lambda: dose_l1(y, s.dose, s.mask),
            "dvh": lambda: dvh_l1(y, s.dose, s.structures),
            "gradient": lambda: gradient_l1(y, s.dose, s.mask),
            "conformity": lambda: conformity(y, s.dose, s.mask),
            "energy": lambda: energy(y, s.dose, s.mask),
        }
        return torch.stack([share * terms[name]() for name, share in self.row.shares.items()]).sum()

    def predicted(self, case: Sample, steps: int, draws: int) -> Tensor:
        s = self.seen(case)
        with torch.no_grad():
            if self.row.role == "mean":
                return regression(self.net, s)[None]
            return sample_doses(self.net, self.base(s), s, self.process, samples=draws, steps=steps)

    def train(self, files: tuple[Path, ...], samples: int, progress: Callable[[float], None]) -> None:
        changes = AugmentationSettings(without_organ=0.03, goals=self.row.goals)
        cases = EncodedCases(
            files, self.encoding, multiple=self.row.size.multiple, settings=changes, seed=self.seed
        )
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
        for n in range(samples):
            progress(n / samples)
            cases.epoch, place = divmod(n, len(files))
            order = np.random.default_rng([self.seed, cases.epoch]).permutation(len(files))
            done = n / samples
            for group in optimizer.param_groups:
                group["lr"] = (
                    LEARNING_RATE * min(1.0, n / 100) * (0.01 + 0.99 * np.cos(done * np.pi / 2) ** 2)
                )
            (self.loss(cases[int(order[place])], n) / 2).backward()
            if n % 2:
                if torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0).isfinite():
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                with torch.no_grad():
                    for name, value in self.net.named_parameters():
                        self.average[name].lerp_(value, 1 - min(0.99, (1 + n / 2) / (10 + n / 2)))
        self.net.load_state_dict(self.average)
        self.net.eval().requires_grad_(False)

    def scores(self, files: tuple[Path, ...], steps: int = 8, draws: int = 1) -> tuple[float, float]:
        """Dose and DVH score of the mean of `draws` samples, Gy."""
        told = replace(NO_AUGMENTATION, goals=1.0, goal=1.0) if self.row.told else NO_AUGMENTATION
        cases = EncodedCases(files, self.encoding, multiple=self.row.size.multiple, settings=told)
        found = summary(
            validate(lambda s: self.predicted(s, steps, draws), cases, (), device=torch.device("cpu"))
        )
        return found["dose_score_gy"], found["dvh_score_gy"]


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about these trainings; none without figures."""
    found = load("ablation")
    if not found:
        return
    yield ""
    yield "## Parts of the dose model"
    yield ""
    yield f"`python benchmarks/ablation.py`, {found['date']}. Small trainings that differ in one thing:"
    yield f"{found['samples']} cases drawn, grids of twice the voxel size. Dose and DVH score in Gy;"
    yield "comparable with each other alone."
    yield ""
    yield "| | dose score | DVH score | minutes |"
    yield "|---|---:|---:|---:|"
    for name, row in found["rows"].items():
        for way, (dose_gy, dvh_gy) in row["scores"].items():
            yield f"| {name}{', ' if way else ''}{way} | {dose_gy:.2f} | {dvh_gy:.2f} | {row['minutes']} |"


def main() -> None:
    """Train the rows that are not there yet, and keep each as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("encoded", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--cases", type=int, default=12, help="validation cases that are scored")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path, default=file_of("ablation"))
    asked = parser.parse_args()
    done = load_file(asked.out)
    if done.setdefault("samples", asked.samples) != asked.samples:
        raise SystemExit(
            f"{asked.out} holds rows of {done['samples']} samples, not {asked.samples}; move it away"
        )
    rows = done.setdefault("rows", {})
    encoding, sets = Encoding(), {}
    for part in ("train", "validation"):
        sets[part] = halved(asked.encoded / part, asked.encoded / f"{part}_halved")
    sets["validation"] = sets["validation"][: asked.cases]
    trained: dict[str, Trial] = {}

    def trial(name: str) -> Trial:
        if name not in trained:
            seed = 1 if "other random numbers" in name else 0
            mean = trial("plain") if ROWS[name].role == "residual" else None
            trained[name] = Trial(ROWS[name], encoding, seed, mean)
            with progress_bar() as bar:
                trained[name].train(sets["train"], asked.samples, lambda share: bar(name, share, ""))
        return trained[name]

    for name in asked.rows:
        if name in rows:
            continue
        start = time.time()
        one = trial(name)
        minutes = (time.time() - start) / 60
        if one.row.role == "mean":
            found = {"": one.scores(sets["validation"])}
        else:
            counts = _STEPS if name == STEPPED else (8,)
            found = {f"{steps} steps": one.scores(sets["validation"], steps) for steps in counts}
            found["8 steps, mean of 8"] = one.scores(sets["validation"], 8, 8)
        rows[name] = {
            "minutes": round(minutes, 1),
            "scores": {k: np.round(v, 3).tolist() for k, v in found.items()},
        }
        done["date"] = today()
        save_file(asked.out, done)
        print(name, rows[name], flush=True)


if __name__ == "__main__":
    main()
