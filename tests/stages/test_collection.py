"""Collection in a run folder: at several positions, batch by batch into its file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast_tl.activations.store import SETS
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.stages.collection import collected
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.settings import merge, parse_assignments
from iconoclast_tl.stages.workspace import Workspace
from tests.conftest import save_llama
from tests.foundation.test_tensor_file import mapped_to

TEMPLATE = "{{ bos_token }}{% for m in messages %} <user> {{ m['content'] }} <eos> w50{% endfor %} <assistant>"


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    folder = save_llama(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    named: dict[str, Any] = {}
    for side, first in (("target", "w1"), ("neutral", "w2")):
        lines = [" ".join([first, f"w{20 + i}", *["w9"] * (i % 4)]) for i in range(15)]
        (tmp_path / f"{side}.txt").write_text("\n".join(lines))
        named[side] = str(tmp_path / f"{side}.txt")
    named = {"model": {"name": str(folder)}, "prompts": named}
    return {**named, "activations": {"batch_size": 4}, "evaluation": {"max_new_tokens": 6}}


@contextmanager
def opened(options: dict[str, Any], out: Path, *changes: str) -> Iterator[Workspace]:
    with open_workspace(merge(options, parse_assignments(changes)), None, out) as workspace:
        yield workspace


@pytest.mark.parametrize(("asked", "through"), [("template", "modules"), ("3", "bridge")])
def test_residuals_of_every_position_of_the_template(
    options: dict[str, Any], tmp_path: Path, asked: str, through: str
) -> None:
    with opened(options, tmp_path / "one") as workspace:
        one = collected(workspace)
    changes = (f"activations.positions={asked}", f"activations.through={through}")
    with opened(options, tmp_path / "all", *changes) as workspace:
        found = collected(workspace)
        rows = workspace.questions(workspace.contrast.train.neutral).rows
        states = _embeddings(workspace.model, rows)
    assert one.positions == (-1,)
    assert found.positions == (-1, -2, -3)
    for name in SETS:
        assert torch.allclose(getattr(found, name), getattr(one, name), atol=1e-5)
    for position in found.positions:
        assert torch.allclose(found.at(position).neutral_train[:, 0], states[position], atol=1e-5)
    assert not torch.allclose(states[-1], states[-2], atol=1e-2)
    for component, mean in one.neutral_means.items():
        assert torch.allclose(found.neutral_means[component], mean, atol=1e-5)


def _embeddings(model: Model, rows: Any) -> dict[int, torch.Tensor]:
    """What enters the first layer at the last three positions."""
    embed = model.hf.get_input_embeddings()
    return {position: embed(torch.tensor([row[position] for row in rows])) for position in (-1, -2, -3)}


def test_more_positions_are_collected_when_they_are_asked_for(options: dict[str, Any], tmp_path: Path) -> None:
    for asked, want in (("1", (-1,)), ("2", (-1, -2)), ("template", (-1, -2, -3))):
        with opened(options, tmp_path / "run", f"activations.positions={asked}") as workspace:
            assert collected(workspace).positions == want
    with opened(options, tmp_path / "run") as workspace:  # by the folder's own settings
        assert collected(workspace).positions == (-1, -2, -3)
        with pytest.raises(UserError, match="position -4 were not collected"):
            collected(workspace).at(-4)


def test_more_than_the_template_has_is_told_before_anything_is_written(options: dict[str, Any], tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"writes 3 tokens.*'<eos>', 'w50', '<assistant>'"),
        opened(options, tmp_path / "run", "activations.positions=4"),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_prompts_that_do_not_end_as_the_template_does_are_told(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    positions = merge(options, {"activations": {"positions": 2}})
    with open_workspace(positions, None, tmp_path / "run", say=said.append) as workspace:
        collected(workspace)
    assert not said
    monkeypatch.setattr("iconoclast_tl.activations.collect.n_unlike", lambda *_: 2)
    with open_workspace(positions, None, tmp_path / "other", say=said.append) as workspace:
        collected(workspace)
    assert said == ["8 prompts end in other tokens than the template's at positions -2 to -1"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux where memory lies")
def test_what_was_collected_lies_in_the_file(options: dict[str, Any], tmp_path: Path) -> None:
    with opened(options, tmp_path / "run", "activations.positions=2") as workspace:
        found = collected(workspace)
    file = str(tmp_path / "run" / "activations.safetensors")
    assert {mapped_to(getattr(found.at(position), name)) for position in (-1, -2) for name in SETS} == {file}


def test_an_interrupted_collection_leaves_the_file_of_before(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(options, tmp_path / "run") as workspace:
        collected(workspace)
    before = (tmp_path / "run" / "activations.safetensors").read_bytes()
    names = sorted(item.name for item in (tmp_path / "run").iterdir())
    honest, batches = torch.stack, []

    def stop(*args: Any, **options: Any) -> Any:
        batches.append(1)
        if len(batches) > 20:
            raise KeyboardInterrupt
        return honest(*args, **options)

    monkeypatch.setattr("iconoclast_tl.activations.collect.torch.stack", stop)
    with (
        opened(options, tmp_path / "run", "activations.positions=2") as workspace,
        pytest.raises(KeyboardInterrupt),
    ):
        collected(workspace)
    assert (tmp_path / "run" / "activations.safetensors").read_bytes() == before
    assert sorted(item.name for item in (tmp_path / "run").iterdir()) == names
    monkeypatch.undo()
    with opened(options, tmp_path / "run", "activations.positions=2") as workspace:
        assert collected(workspace).positions == (-1, -2)
