"""`generate`: the best sample goes the way of a plan, and all samples are on record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_case import StandIn

from vmat_diffusion.errors import InputError
from vmat_diffusion.generate.encode import FEATURES
from vmat_diffusion.generate.model import FluenceDescription, FluenceModel, save_fluence_model
from vmat_diffusion.generate.network import FluenceNet, FluenceSize
from vmat_diffusion.workflow.generation.run import generate_case
from vmat_diffusion.workflow.planning.run_files import SAMPLES, SAMPLES_RECORD
from vmat_diffusion.workflow.settings import GenerateSettings


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    size = FluenceSize(channels=8, deep_channels=8, embedding=8, blocks=1)
    description = FluenceDescription(0.9, 0.5, (1.0,) * len(FEATURES), size=size)
    model = FluenceModel(description, FluenceNet(len(FEATURES), size))
    return save_fluence_model(tmp_path_factory.mktemp("weights") / "tiny.safetensors", model)


@pytest.mark.slow
def test_the_best_sample_is_judged_and_all_are_kept(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, weights: Path
) -> None:
    optimiser()
    settings = GenerateSettings(
        goals="tg119_cshape_easy",
        generator=str(weights),
        samples=2,
        reverse_steps=1,
        descents=2,
        grid_mm=6.0,
    )
    out = tmp_path / "out"
    done = generate_case(case_folder, out, settings, tools=optimiser.tools)
    assert done.run.violations == () and done.run.check is not None
    assert [s.violations for s in done.made.samples] == [(), ()]
    record = json.loads((out / SAMPLES_RECORD).read_text())
    assert {row["sample"] for row in record["samples"]} == {0, 1}
    assert "do not say from which plans" in record["unusual"][0]
    with np.load(out / SAMPLES) as arrays:
        assert arrays["gy"].shape[0] == 2 and arrays["gy"].max() > 30
        np.testing.assert_allclose(arrays["spread_gy"], arrays["gy"].astype(np.float32).std(axis=0), atol=0.1)
    assert (out / "run.json").is_file() and (out / "report.html").is_file()
    assert (out / "RP.dcm").is_file() is done.run.passed
    generate_case(case_folder, out, settings, overwrite=True, tools=optimiser.tools)


def test_wrong_weights_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    settings = GenerateSettings(goals="tg119_cshape_easy", generator="none.safetensors")
    with pytest.raises(InputError, match=r"weights none\.safetensors of the generator"):
        generate_case(tmp_path / "no case", tmp_path / "out", settings)
