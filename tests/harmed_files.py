"""Kinds of files that the program reads, each with a way to harm it and its reader: a result or a sentence.

kinds = text_kinds(folder)
outcome(kinds["sheet"], seed=3)  # "read" or "refused"; any other exception is a defect
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import get_type_hints

import mutants
import numpy as np
import torch
from dicom_files import ct_series, cylinder_hu, rt_dose, rt_plan, save, structure_set
from openkbp_files import arrays as openkbp_arrays
from openkbp_files import write_folder, write_npz
from tiny_model import tiny_model
from training_cases import save_dataset, small_training
from training_runs import mean_stage, residual_stage, tiny_settings

from vmat_diffusion.benchmark.journal import Journal
from vmat_diffusion.case import Case, Dose, load_ct_table
from vmat_diffusion.cli.options import resolved
from vmat_diffusion.cli.program import function_of
from vmat_diffusion.commissioning.scans import read_curves
from vmat_diffusion.dataset.cases import load_case
from vmat_diffusion.dataset.index import entries_of
from vmat_diffusion.dataset.openkbp import read_openkbp
from vmat_diffusion.dataset.raw_cases import scan
from vmat_diffusion.dataset.splits import load_splits
from vmat_diffusion.dataset.tables import read_dataset
from vmat_diffusion.dicom import inspect, read_case, read_dose, read_plan
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.diffusion.model import load_model, save_model
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.goals import load_goals
from vmat_diffusion.jobs import case_states
from vmat_diffusion.machine import load_machine, machine_text
from vmat_diffusion.qa import gate_limits
from vmat_diffusion.training.checkpoint import (
    CHECKPOINT,
    METRICS,
    TrainingRecords,
    load_checkpoint,
    read_metrics,
    save_checkpoint,
)
from vmat_diffusion.training.encoded import save_encoded
from vmat_diffusion.training.samples import EncodedCases
from vmat_diffusion.training.settings import load_settings
from vmat_diffusion.training.stage import StageModule
from vmat_diffusion.training.weights import start_fresh
from vmat_diffusion.workflow.checks import check_plan
from vmat_diffusion.workflow.deidentify import deidentify_folder
from vmat_diffusion.workflow.export import export_weights
from vmat_diffusion.workflow.trade_off import read_trade_off

# Of processor time, so that other work on the machine does not count.
SECONDS_MAX = 20


@dataclass(frozen=True)
class Kind:
    """A file that is harmed by `change` and then read by `read(seed)`."""

    name: str
    file: Path
    whole: bytes
    change: Callable[[random.Random, bytes], bytes]
    read: Callable[[int], object]


class TooSlow(BaseException):
    """Reading took more than SECONDS_MAX of processor time."""


@contextmanager
def alarm() -> Iterator[None]:
    """Raise TooSlow in the middle of whatever takes too long."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {SECONDS_MAX} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_MAX)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(kind: Kind, seed: int) -> str:
    """`read` or `refused`; whatever else the harmed file leads to is raised."""
    harmed = kind.change(random.Random(f"{kind.name} {seed}"), kind.whole)
    kind.file.write_bytes(harmed)
    try:
        with alarm():
            kind.read(seed)
    except InputError as refusal:
        sentence = str(refusal)
        assert sentence.strip() and "\n" not in sentence, f"no sentence: {sentence!r}"
        assert "secret" not in sentence.lower(), "the sentence names the patient"
        return "refused"
    finally:
        kind.file.write_bytes(kind.whole)
    return "read"


def _kind(name: str, file: Path, change: Callable, read: Callable[[], object]) -> Kind:
    return Kind(name, file, file.read_bytes(), change, lambda seed: read())


# DICOM: one patient; each file is harmed in turn.


def dicom_kinds(folder: Path) -> dict[str, Kind]:
    """Four slices, a structure set, a dose and a plan; read one by one, as a case, and de-identified."""
    patient, other = folder / "patient", folder / "other"
    patient.mkdir(parents=True)
    images = ct_series(
        cylinder_hu(4, 12), spacing_mm=(4.0, 4.0), origins_mm=[(-22, -22, 3 * k) for k in range(4)]
    )
    datasets = {f"ct{k}": image for k, image in enumerate(images)}
    datasets |= {"rs": structure_set(images), "rd": rt_dose(), "rp": rt_plan()}
    for name, dataset in datasets.items():
        save(dataset, patient / name)

    def read(name: str, seed: int) -> None:
        if seed % 20 == 0:
            assert inspect(patient).lines()
        if seed % 15 == 0:
            shutil.rmtree(other, ignore_errors=True)
            deidentify_folder(patient, other, key="0123456789abcdef")
        if name == "rd":
            _sound(read_dose(patient / name))
        elif name == "rp":
            _sound_plan(patient / name)
        if name not in ("rd", "rp") or seed % 5 == 0:
            _sound(read_case(patient))

    def reader(name: str) -> Callable[[int], object]:
        return lambda seed: read(name, seed)

    return {
        name: Kind(name, patient / name, (patient / name).read_bytes(), mutants.dicom_changed, reader(name))
        for name in datasets
    }


def _sound(read: Case | Dose) -> None:
    assert isinstance(read, Case | Dose)
    dose = read if isinstance(read, Dose) else read.reference_dose
    if isinstance(read, Case):
        assert np.all(np.isfinite(read.hu)) and "secret" not in read.id.lower()
    if dose is not None:
        assert np.all(np.isfinite(dose.gy)) and dose.gy.max() <= 1000


def _sound_plan(file: Path) -> None:
    plan = read_plan(file)
    assert all(np.all(np.isfinite(arc.leaves_mm)) for arc in plan.arcs) and np.isfinite(plan.total_mu)
    check_plan(file, "generic_6mv")


# Arrays: training cases, encoded cases, the challenge's patients, weights, checkpoints.


def array_kinds(folder: Path) -> dict[str, Kind]:
    """The files of arrays that are read without pickle."""
    training = small_training()
    save_dataset(folder / "set", [training])
    case = next((folder / "set").glob("*.npz"))
    encoding = tiny_settings(mean_stage()).encoding
    coded = save_encoded(folder / "coded.npz", training, encoding)
    challenge = write_npz(folder / "pt_1.npz", openkbp_arrays())
    weights = save_model(folder / "weights.safetensors", tiny_model())
    change = mutants.npz_changed
    kinds = [
        _kind("training case", case, change, lambda: _sound_case(case)),
        _kind("encoded case", coded, change, lambda: _one_sample(coded, encoding)),
        _kind("openkbp npz", challenge, change, lambda: _sound(read_openkbp(challenge).case)),
        _kind("weights", weights, mutants.bytes_changed, lambda: load_model(weights)),
        _checkpoint(folder / "run"),
    ]
    return {kind.name: kind for kind in kinds}


def _sound_case(file: Path) -> None:
    case = load_case(file).case
    if case.reference_dose is not None:
        assert case.reference_dose.gy.min() >= 0 and case.reference_dose.gy.max() <= 1000


def _one_sample(file: Path, encoding: Encoding) -> None:
    sample = EncodedCases((file,), encoding, multiple=16)[0]
    assert bool(torch.isfinite(sample.volume).all())


def _checkpoint(run: Path) -> Kind:
    settings = tiny_settings(mean_stage(8), residual_stage(8))
    start = start_fresh(settings)
    parameters = StageModule(settings, start, stream=None, workers=0)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(parameters.net.parameters())
    for parameter in parameters.net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    run.mkdir(parents=True)
    sums = {"loss": 1.0, "samples": 2.0}
    whole = replace(start, samples=2, optimizer=optimizer.state_dict(), sums=sums, mean=start.ema)
    file = save_checkpoint(run / CHECKPOINT, whole)

    def read() -> None:
        found = load_checkpoint(file)
        module = StageModule(tiny_settings(mean_stage(8), residual_stage(8)), found, stream=None, workers=0)  # type: ignore[arg-type]
        module.configure_optimizers()

    return _kind("checkpoint", file, mutants.checkpoint_changed, read)


# Texts: what a person writes, and what the program keeps.

_SHEET = (
    'title = "t"\nsite = "head_neck"\nsource = "s"\nfractions = 30\n[prescription_gy]\nPTV_60 = 60\n'
    '[normalization]\nPTV_60 = "D95% = 60 Gy"\n[[goals]]\nstructure = "SpinalCord"\n'
    'goal = "max <= 45 Gy"\npriority = 1\nsource = "p"\n[unions]\nLungs = ["Lung_L", "Lung_R"]\n'
)
_OPTIONS = 'goals = "head_neck_70_63_56"\narcs = 2\ncollimator_deg = [10.0, 80.0]\nspan = "full"\nseed = 1\n'
_MAPPING = {
    "about": "ours",
    "structures": {
        "SpinalCord": {"role": "organ", "aliases": ["myelon"], "regexes": ["^rm .*"]},
        "Parotid_{side}": {"role": "organ", "aliases": ["par {side}"]},
        "PTV_{dose}": {"role": "target", "regexes": ["^ptv_(?P<dose>\\d+)$"]},
    },
}
_RUN = {
    "goals": [{"structure": "PTV", "goal": "D95% >= 47 Gy", "value": 48.0, "limit": 47.0, "unit": "Gy"}],
    "inputs": {"frame_of_reference_uid": "1", "series_uid": "2", "structure_set_uid": "3"},
    "verdict": {"passed": True, "checks": [{"name": "gamma", "passed": True}]},
    "prescription_gy": {"PTV": 50.0},
    "files": ["RP.dcm", "run.json"],
    "mu": 500.0,
    "delivery_s": 90.0,
    "outcome": "CONVERGED",
}
_METRICS = (
    '{"stage": 0, "role": "mean", "samples": 4, "loss": 0.5, "samples_per_s": 1.5}\n'
    '{"stage": 0, "role": "mean", "samples": 8, "validation": {"dose_score_gy": 3.0, "dvh_score_gy": 2.0}}\n'
)


@dataclass(frozen=True)
class _Result:
    """A result of a patient, as a benchmark keeps it."""

    id: str
    scores: dict[str, float]
    note: str | None = None


def text_kinds(folder: Path) -> dict[str, Kind]:
    """Everything of words and numbers that is read."""
    return {
        kind.name: kind for kind in (*_written_by_people(folder), *_kept(folder), *_states(folder / "states"))
    }


def _written_by_people(folder: Path) -> list[Kind]:
    folder.mkdir(parents=True, exist_ok=True)
    package = Path(case_states.__file__).parents[1]
    recipe = (package / "training" / "recipes" / "shipped.toml").read_text()
    raw = folder / "raw"
    for name in ("a", "b"):
        (raw / name).mkdir(parents=True)
        save(rt_dose(uid=f"1.2.{ord(name)}"), raw / name / "rd.dcm")
    head = "PDD,100*100,1000,OPD,Z,"
    scans = "curve,field_mm,ssd_mm,type,axis,depth_mm,x_mm,y_mm,z_depth_mm,dose_rel\n"
    scans += "".join(f"{head},0,0,{d},{100 - d / 4}\n" for d in range(0, 300, 10))
    challenge = write_folder(folder / "pt_2", openkbp_arrays())

    def made(name: str, text: str, change: Callable, read: Callable[[Path], object]) -> Kind:
        file = folder / name
        file.write_text(text)
        return _kind(Path(name).name, file, change, lambda: read(file))

    return [
        made("sheet.toml", _SHEET, mutants.text_changed, load_goals),
        made("machine.toml", machine_text("generic_6mv"), mutants.text_changed, load_machine),
        made(
            "gate.toml",
            (package / "qa" / "gate.toml").read_text(),
            mutants.text_changed,
            lambda file: gate_limits(file, 0.02),
        ),
        made("recipe.toml", recipe, mutants.text_changed, load_settings),
        made("options.toml", _OPTIONS, mutants.text_changed, _options),
        made("mapping.json", json.dumps(_MAPPING, indent=1), mutants.json_changed, _named),
        made(
            "sites.csv",
            "case,site,fractions\na,head_neck,30\nb,prostate,\n",
            mutants.text_changed,
            lambda file: scan(raw, file),
        ),
        made(
            "ct_table.csv",
            "hu,density_g_cm3\n-1000,0.001\n0,1.0\n1000,1.6\n3000,2.8\n",
            mutants.text_changed,
            load_ct_table,
        ),
        made("scans.csv", scans, mutants.text_changed, read_curves),
        _kind(
            "openkbp csv", challenge / "ct.csv", _rows_changed, lambda: _sound(read_openkbp(challenge).case)
        ),
    ]


def _rows_changed(draw: random.Random, data: bytes) -> bytes:
    """As other texts, but of a long table only the end."""
    head, tail = data[:-400], data[-400:]
    return (
        head + mutants.text_changed(draw, tail) if draw.random() < 0.8 else mutants.bytes_changed(draw, data)
    )


def _options(file: Path) -> object:
    kind = get_type_hints(function_of("plan"))["options"]
    source = SimpleNamespace(name="COMMANDLINE")
    context = SimpleNamespace(get_parameter_source=lambda name: source, info_name="plan", command_path="plan")
    return resolved(kind, context, {"config_file": file, "case": Path("case"), "out": Path("out")})


def _named(file: Path) -> None:
    table = load_table(file)
    for name in ("Myelon", "PTV_60", "parotid left", "RM 3 x"):
        table.match(name)


def _kept(folder: Path) -> list[Kind]:
    data = save_dataset(
        folder / "set",
        [small_training("case_1"), small_training("case_2")],
        {"case_1": "train", "case_2": "test"},
    )
    (data / "dataset.json").write_text(json.dumps({"settings": {"a": 1}, "shape": [8, 16, 16]}))
    begun, run, training = folder / "begun", folder / "plan", folder / "training"
    for place in (begun / case_states.WORK, run, training):
        place.mkdir(parents=True)
    case_states.write_run(begun, {"a": 1}, None)
    (run / "run.json").write_text(json.dumps(_RUN))
    (training / METRICS).write_text(_METRICS)
    save_checkpoint(training / CHECKPOINT, start_fresh(tiny_settings(mean_stage(8))))
    known = {"cases": 2, "sites": ["lung"], "positions": ["HFS"], "features": ["top_gy", "Larynx_x_mm"]}
    known |= {
        "mean": [70.0, 3.0],
        "precision": [[1.0, 0.0], [0.0, 1.0]],
        "low": [60.0, 1.0],
        "high": [70.0, 4.0],
    }
    (training / "known.json").write_text(json.dumps({**known, "limit": 3.5}))
    journal, patient = folder / "found.patients.jsonl", folder / "pt_9.npz"
    patient.write_bytes(b"files are told apart by their content")
    head = {"weights": "w", "seed": 1}
    kept = Journal.opened(journal, head, _Result, overwrite=False)
    for name in ("pt_9", "pt_10"):
        kept.keep(patient, _Result(name, {"dose": 2.5}))

    def records() -> None:
        TrainingRecords(training, samples=8).close()
        read_metrics(training)
        shutil.rmtree(training / "tensorboard", ignore_errors=True)

    change = mutants.json_changed
    return [
        _kind("index", data / "index.jsonl", change, lambda: entries_of(data)),
        _kind("splits", data / "splits.json", change, lambda: load_splits(data / "splits.json")),
        _kind("dataset", data / "dataset.json", change, lambda: read_dataset(data)),
        _kind(
            "dataset resumed",
            data / "dataset.json",
            change,
            lambda: case_states.begin_dataset(data, {"a": 1}, None, resume=True),
        ),
        _kind(
            "dataset begun",
            begun / case_states.WORK / "run.json",
            change,
            lambda: case_states.begin_dataset(begun, {"a": 1}, None, resume=True),
        ),
        _kind("run.json", run / "run.json", change, lambda: read_trade_off([run])),
        _kind("metrics", training / METRICS, change, records),
        _kind(
            "known",
            training / "known.json",
            change,
            lambda: export_weights(training, folder / "w.safetensors"),
        ),
        _kind("journal", journal, change, lambda: Journal.opened(journal, head, _Result, overwrite=False)),
    ]


def _states(out: Path) -> list[Kind]:
    """The states of a case that is done, of one that is staged, and of one that was rejected."""
    (out / case_states.WORK).mkdir(parents=True)
    training = replace(small_training("case_1"), provenance={"technique": "VMAT", "patient": "p"})
    training = replace(training, possible_dose=training.possible_dose)

    def draw(path: Path, case: object) -> Path:
        path.write_bytes(b"picture")
        return path

    done = case_states.write_training_case(training, out, draw=draw)
    case_states.write_state(out, "case_1", "key", state="done", shape=[12, 28, 32], cut_percent={}, **done)
    extent = [[30.0, 30.0, 30.0], [100.0, 100.0, 60.0]]
    staged = case_states.staged_path(out, "case_2")
    staged.write_bytes(b"x")
    files = {f"{case_states.WORK}/case_2.npz": 1}
    case_states.write_state(out, "case_2", "key", state="staged", files=files, extent=extent)
    case_states.write_state(
        out, "case_3", "key", state="rejected", reason="no dose; fetch it", defect=False, trace=""
    )

    def read() -> None:
        states = case_states.read_states(out)
        for state in states:
            case_states.is_made(out, state, "key", {"state": "done"})
        finished = [s for s in states if s["state"] == "done"]
        extents = [[float(v) for row in s["extent"] for v in row] for s in states if s["state"] == "staged"]
        assert all(np.all(np.isfinite(e)) for e in extents)
        case_states.write_tables(out, {"a": 1}, None, finished, case_states.rejections_of(states))

    return [
        _kind(f"state {what}", out / case_states.WORK / f"case_{k}.state", mutants.json_changed, read)
        for k, what in ((1, "done"), (2, "staged"), (3, "rejected"))
    ]


GROUPS = {"dicom": dicom_kinds, "arrays": array_kinds, "texts": text_kinds}
# How often each kind of a group is harmed, relative to the others.
WEIGHTS = {
    "rs": 3,
    "rd": 2,
    "rp": 3,
    "training case": 6,
    "encoded case": 2,
    "openkbp npz": 1,
    "checkpoint": 2,
}


def drawn(kinds: dict[str, Kind], number: int) -> Kind:
    """The kind of the file with that number: each as often as its weight."""
    names = [name for name in kinds for _ in range(WEIGHTS.get(name, 1))]
    return kinds[names[number % len(names)]]


__all__ = ["GROUPS", "Kind", "TooSlow", "array_kinds", "dicom_kinds", "drawn", "outcome", "text_kinds"]
