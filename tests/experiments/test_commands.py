"""The commands that measure run: what they print is looked at where it means something, on a quiet machine or a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.costs import bench as costs
from experiments.gpu import bench as gpu
from experiments.memory import bench as memory


def test_costs_are_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "REPETITIONS", 1)
    monkeypatch.setattr(costs, "NEW_TOKENS", 2)
    hf = costs.build(128, 2)
    found = [*costs.hooks(hf).values(), costs.gradient_step(hf), *costs.together(hf, 2).values()]
    assert all(0 < ratio < 1000 for ratio in found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so only where there is no GPU")
def test_where_there_is_no_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no GPU here: nothing was measured"):
        gpu.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_model_is_written_in_files_and_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory benchmark's own model and run folder, small."""
    honest = memory.configuration

    def small(n_layers: int) -> object:
        config = honest(n_layers)
        config.vocab_size, config.intermediate_size = 64, 32
        return config

    monkeypatch.setattr(memory, "configuration", small)
    monkeypatch.setattr(memory, "LAYERS_PER_FILE", 1)
    largest = memory.write_model(tmp_path / "model", 2)
    assert 0 < largest < 50e6
    memory.write_run(tmp_path / "run", tmp_path / "model", 2)
    memory.merge(tmp_path / "run")
    index = json.loads((tmp_path / "run" / "merged" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3
