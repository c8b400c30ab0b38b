"""Time the prediction of a whole volume, and the start of `predict` in a fresh process.

    python benchmarks/prediction.py [--weights shipped] [--threads 2] [--device cpu] [--steps 8] [--repeats 3]

The case is a head and neck of OpenKBP from VMAT_SHARED_DATA. Figures are kept by device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from computer import stamp
from figures import load, save

from vmat_diffusion.dataset.cases import TrainingCase, save_case
from vmat_diffusion.dataset.openkbp import GOALS, read_openkbp
from vmat_diffusion.diffusion.encode import encode
from vmat_diffusion.diffusion.model import DoseModel, load_model
from vmat_diffusion.diffusion.predict import Sampling, predict_encoded

ROOT = Path(__file__).resolve().parents[1]
PATIENT = Path("openkbp") / "validation" / "pt_201.npz"


def whole_volume(case: TrainingCase, model: DoseModel, steps: int, repeats: int) -> dict[str, float]:
    """Seconds to encode a case, for the regression alone, and for one sample with it; the best of several.

    `sample_s` is the time of one sample more, whose anatomy is encoded already.
    """
    encoded = encode(case.case, case.possible_dose, model.encoding, has_ct=case.has_ct)
    out = {
        "encode_s": min(
            _seconds(lambda: encode(case.case, case.possible_dose, model.encoding, has_ct=case.has_ct))
            for _ in range(repeats)
        )
    }

    def best(sampling: Sampling) -> float:
        return min(_seconds(lambda: predict_encoded(encoded, model, sampling)) for _ in range(repeats))

    best(Sampling(mirror=False))  # what is done but once
    out["regression_s"] = best(Sampling())
    if model.residual is not None:
        out["one_sample_s"] = best(Sampling(samples=1, steps=steps, calibrated=False))
        out["sample_s"] = best(Sampling(samples=2, steps=steps, calibrated=False)) - out["one_sample_s"]
    return out


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def cold_start(case: TrainingCase, weights: str, device: str, threads: int, work: Path) -> dict[str, float]:
    """Seconds of a fresh `predict` for the regression of a training case, in all and until it predicts.

    Until then it loads Python and the libraries, reads the case and the weights.
    """
    source, out = save_case(work / "case.npz", case), work / "out"
    command = [sys.executable, "-m", "vmat_diffusion", "predict", source, "--goals", GOALS, "--out", out]
    command += ["--weights", weights, "--samples", "0", "--device", device, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    wall = time.perf_counter() - started
    seconds = json.loads(done.stdout)["seconds"]
    return {"command_s": wall, "start_s": wall - seconds["predict"] - seconds["write"]}


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about prediction; none without figures."""
    figures = load("prediction")
    if not figures:
        return
    yield ""
    yield "## Prediction"
    yield ""
    yield "`python benchmarks/prediction.py`. The whole volume of one head and neck of OpenKBP (pt_201), with"
    yield "its mirror image; seconds. One sample includes the regression around which it is drawn. Start is a"
    yield "fresh `predict` until it begins to predict: Python, libraries, case and weights. Others is how"
    yield "many cores the rest of the computer kept busy."
    yield ""
    columns = ("device", "steps", "encode", "regression", "one sample", "each further", "start, s", "others")
    yield f"| {' | '.join(columns)} | date |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---|"
    for name, row in figures.items():
        cells = [row.get(key) for key in ("encode_s", "regression_s", "one_sample_s", "sample_s", "start_s")]
        text = " | ".join("" if value is None else f"{value:.1f}" for value in cells)
        yield f"| {name} | {row['steps']} | {text} | {row['others']:.1f} | {row['date']} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="shipped", help="'shipped' or a file of weights")
    parser.add_argument("--threads", type=int, default=2, help="of the processor")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=8, help="of the sampler")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many is kept")
    given = parser.parse_args()
    file = Path(os.environ.get("VMAT_SHARED_DATA", ROOT / ".." / "shared" / "data")) / PATIENT
    if not file.is_file():
        sys.exit("prediction: OpenKBP is not in VMAT_SHARED_DATA; nothing is measured")
    torch.set_num_threads(given.threads)
    from peers import busy_s

    case, model = read_openkbp(file), load_model(given.weights).to(given.device)
    row: dict[str, Any] = {"steps": given.steps}
    before, own, started = busy_s(), sum(os.times()[:4]), time.perf_counter()
    row |= whole_volume(case, model, given.steps, given.repeats)
    with tempfile.TemporaryDirectory(prefix="vmat_prediction_") as work:
        row |= cold_start(case, given.weights, given.device, given.threads, Path(work))
    others = busy_s() - before - (sum(os.times()[:4]) - own)
    row["others"] = max(0.0, others / (time.perf_counter() - started))
    name = f"{given.threads} cores" if given.device == "cpu" else torch.cuda.get_device_name()
    row |= stamp()
    figures = load("prediction")
    save("prediction", {**figures, name: row})
    print("\n".join(section()))


if __name__ == "__main__":
    main()
