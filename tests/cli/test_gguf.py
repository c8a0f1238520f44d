"""A GGUF file on the command line: a whole run, its merged folder, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Cli, content
from tests.models.gguf_files import TEMPLATE, save_gguf, tiny, words

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SMALL = [
    *("--set", "evaluation.max_new_tokens=4"),
    *("--set", "evaluation.kl_tokens=4"),
    *("--set", "search.gradient.steps=2"),
    *("--set", f"evaluation.markers={json.dumps([*LETTERS[:13]])}"),
]


def writes_letters(seed: int = 0) -> Any:
    """A tiny Llama that says nothing but letters, of which half show the behaviour."""
    hf = tiny(seed=seed, tie_word_embeddings=True)
    others = [index for index, word in enumerate(words()) if word not in [*LETTERS]]
    hf.model.embed_tokens.weight.data[others] = 0
    return hf


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return save_gguf(tmp_path / "tiny.Q8_0.gguf", writes_letters())


@pytest.mark.slow
def test_a_run_merges_into_a_folder_that_transformers_loads_alone(cli: Cli, place: Path, prompts: list[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from iconoclast_tl.models.load import load_model

    run = Path("runs/tiny.Q8_0")
    done = cli("search", "--model", place, *prompts, *SMALL)
    assert done.code == 0, done.err
    assert "weights stored as F32, Q8_0 are now plain float32" in done.err
    # Not file by file, and the error says how.
    before = content(run)
    done = cli("merge", "--out", run)
    assert done.code == 2
    assert "cannot be edited file by file: got a GGUF file" in done.error
    assert f"use `fold --merge --out {run}`" in done.error
    assert content(run) == before
    # The folder knows its model, and what was computed is not computed again.
    done = cli("run", "--merge", "--out", run)
    assert done.code == 0, done.err
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["model"]["name"] == str(place)
    assert manifest["model"]["files"] is not None
    fidelity = json.loads((run / "results.json").read_text())["fidelity"]
    assert fidelity["preview_vs_adapter"]["ok"]
    assert fidelity["preview_vs_merged"]["ok"]
    merged = AutoModelForCausalLM.from_pretrained(str(run / "merged"))
    assert AutoTokenizer.from_pretrained(str(run / "merged")).chat_template == TEMPLATE
    model = load_model(str(place), device="cpu")
    ids = torch.tensor([[words().index(letter) for letter in LETTERS]])
    with torch.no_grad():
        apart = float((merged(ids).logits - model.hf(ids).logits).abs().max())
    assert apart > 1e-3
    assert (run / "merged" / "README.md").read_text().startswith(f"---\nbase_model: {place}\n")
    about = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(place)
    # Another file of the same name is another model.
    before = content(run)
    save_gguf(place, writes_letters(seed=1))
    done = cli("run", "--out", run)
    assert done.code == 2
    assert "other weights" in done.error or "model" in done.error
    assert content(run) == before


@pytest.mark.parametrize("command", ["run", "collect", "preview", "search"])
def test_a_file_that_lies_leaves_nothing_behind(cli: Cli, place: Path, prompts: list[str], command: str) -> None:
    save_gguf(place, tiny(), changes={"llama.block_count": 99})
    done = cli(command, "--model", place, *prompts, "--out", "deep/run")
    assert done.code == 2
    assert "contradicts itself: got tensors of 3 layers; want 99" in done.error
    assert not Path("deep").exists()


def test_without_a_template_the_run_says_how_to_go_on(cli: Cli, place: Path, prompts: list[str]) -> None:
    save_gguf(place, tiny(), template=None)
    done = cli("collect", "--model", place, *prompts, "--out", "run")
    assert done.code == 2
    assert "no chat template" in done.error
    assert "--raw-prompts" in done.error
    assert not Path("run").exists()
    assert cli("collect", "--model", place, *prompts, "--out", "run", "--raw-prompts").code == 0
