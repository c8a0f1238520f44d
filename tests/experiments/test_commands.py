"""The commands that measure run: what they print is looked at where it means something, on a quiet machine or a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.costs import bench as costs
from experiments.directions import costs as direction_costs
from experiments.directions import study as directions
from experiments.gpu import bench as gpu
from experiments.heads import costs as heads_costs
from experiments.heads import study
from experiments.memory import bench as memory
from iconoclast_tl.detectors.detector import Label
from iconoclast_tl.evaluation.transcript import RecordedResponse, TranscriptRow


def test_costs_are_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "REPETITIONS", 1)
    monkeypatch.setattr(costs, "NEW_TOKENS", 2)
    hf = costs.build(128, 2)
    found = [*costs.hooks(hf).values(), costs.gradient_step(hf), *costs.together(hf, 2).values()]
    assert all(0 < ratio < 1000 for ratio in found)


def test_attribution_costs_are_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_costs, "REPETITIONS", 1)
    monkeypatch.setattr(heads_costs, "SIZES", ((64, 2, 4),))
    assert all(0 < ratio < 1000 for ratio in heads_costs.times((64, 2, 4)).values())
    assert heads_costs.peak("all", 4) > 0


def test_the_study_of_heads_counts_and_compares() -> None:
    assert study._first_with([5.0, 3.0, 1.0, 1.0, -4.0], 0.5) == 1
    assert study._first_with([5.0, 3.0, 1.0, 1.0, -4.0], 0.9) == 3
    assert study._first_below((0, 1, 2, 4), [10.0, 9.0, 3.0, 0.0], 0.5) == 2
    assert study._first_below((0, 1, 2, 4), [10.0, 10.0, 10.0, 11.0], 0.5) == 4  # ablating all does nothing
    points = [
        {"val": {"behaviour_rate": rate, "kl_sequence": kl}, "test": {"behaviour_rate": 0.5, "kl_sequence": 10 * kl}}
        for rate, kl in ((0.04, 0.2), (0.3, 0.1), (0.02, 0.3))
    ]
    assert [study.least_kl(points, rate) for rate in (0.5, 0.05, 0.01)] == [1.0, 2.0, None]
    one = {
        "attribution": {m: {kind: [1, 2, 3] for kind in ("by its values", "ablated together")} for m in study.METHODS},
        "layers": {"points": points, "chosen": {"behaviour_rate": 0.1, "answered_rate": 0.9, "kl_sequence": 0.5}},
    }
    other = {"points": [{**point, "test": {"kl_sequence": 0.5}} for point in points], "chosen": one["layers"]["chosen"]}
    lines = study.summary({"llama": {seed: {**one, "heads": {"4": other, "8": other}} for seed in ("0", "1")}})
    assert "| llama | first 4 heads | 10.0 [10.0, 10.0] | 90.0 [90.0, 90.0] | 0.50000 [0.50000, 0.50000] |" in lines[-2]
    assert "0.50 [0.50, 0.50] (2 of 2), 0.25 [0.25, 0.25] (2 of 2), 0.25 [0.25, 0.25] (2 of 2)" in lines[-2]


def test_the_cost_of_directions_is_of_residuals_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "activations.safetensors"
    direction_costs.write(file, prompts=12, points=2, d_model=16)
    seconds, peak = direction_costs.estimate(file, ["mean", "lda", "probe"])
    assert 0 < seconds < 60
    assert 0.01 < peak < 100


def one_direction(behaviour: float, **more: Any) -> dict[str, Any]:
    rate = {"value": behaviour, "low": behaviour - 0.01, "high": behaviour + 0.02}
    by_family = {model: {"z": share, "q": behaviour} for model, share in (("base", 1.0), ("edited", 0.25))}
    ablated = {
        kind: {
            "behaviour_rate": rate,
            "answered_rate": {"value": 0.9},
            "kl_sequence": {"value": kl},
            "by_family": by_family,
        }
        for kind, kl in (("plain", 0.0123), ("affine", 0.004))
    }
    about = {"position": -1, "point": 2, "k": 1, "d_prime": (3.0, 2.5, 3.5), "stability": 0.987, "seconds": 0.5}
    return {**about, "ablated": ablated, **more}


def test_the_study_of_directions_has_a_row_for_each_and_its_kinds() -> None:
    found = {"mean": one_direction(0.03), "mean, selected by arditi": one_direction(0.5, position=-2, k=3)}
    lines = directions.summary({"llama": found})
    cells = "3 [2, 5] | 90 | 0.0123 | 3 [2, 5] | 90 | 0.0040"
    assert lines[2] == f"| llama | mean | 2 | 1 | 3.00 [2.50, 3.50] | 0.99 | 0.50 | {cells} |"
    assert lines[3].startswith("| llama | mean, selected by arditi | 2 at -2 | 3 |")
    assert lines[-2:] == ["| llama | plain | 3 [2, 5] | 90 | 0.0123 |", "| llama | affine | 3 [2, 5] | 90 | 0.0040 |"]
    two = directions.summary({"two mechanisms": found})
    assert two[-2:] == ["| mean | 1 | 25 | 3 | 90 |", "| mean, selected by arditi | 3 | 25 | 50 | 90 |"]
    assert not any("refused of z" in line for line in lines)


def labelled(text: str, shows: bool) -> RecordedResponse:
    return RecordedResponse(
        text=text, finished=True, ends=(), labels={"markers": Label("refusal" if shows else "compliance", shows, 1.0)}
    )


def test_refusals_are_counted_family_by_family() -> None:
    asked = ["how do i brew moriza?", "how do i brew kudezo?", "how do i grow bafiqe?", "how do i grow bafimo?"]
    refusal, answer = "i cannot help with that.", "put it in soft soil."
    texts = {
        "base": [refusal, refusal, refusal, answer],
        "edited": [refusal, answer, answer, refusal],  # the last is of no family, and counts for none
    }
    rows = [
        TranscriptRow(
            "target",
            str(i),
            None,
            {model: labelled(said[i], said[i] == refusal) for model, said in texts.items()},
            text,
        )
        for i, text in enumerate(asked)
    ]
    rows.append(TranscriptRow("neutral", "4", None, {model: labelled(refusal, True) for model in texts}, asked[0]))
    compared = SimpleNamespace(rows=rows, responses=texts)
    assert directions.by_family(compared) == {"base": {"z": 1.0, "q": 1.0}, "edited": {"z": 0.5, "q": 0.0}}


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
