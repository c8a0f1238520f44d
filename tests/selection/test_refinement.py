"""Refinement on a model made by hand, in which each of three marks makes a prompt refused by a direction of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iconoclast_tl.architecture.sites import WRITERS
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimate import estimate_directions
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import make_edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.edits.profiles import uniform
from iconoclast_tl.evaluation.baseline import baseline
from iconoclast_tl.foundation.progress import unheard
from iconoclast_tl.selection import refinement
from iconoclast_tl.selection.choose import behaviour_tokens
from iconoclast_tl.stages.collection import collected
from iconoclast_tl.stages.directions import estimated
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.settings import merge, parse_assignments
from iconoclast_tl.stages.workspace import Workspace
from tests.conftest import SIZES, make_tokenizer

MARKS, SEEN, CONSTANT, REFUSED = slice(0, 3), slice(3, 6), 6, 7
"""Coordinates: of the marks w1, w2 and w3 at their own tokens, of the same later, of every token, of refusal."""
SAYS_NO, SAYS_YES, WIDTH, WORDS = 17, 18, 24, 7
"""Ids of w10 and w11; d_model; the id of w0."""
TEMPLATE = "{{ bos_token }}{% for m in messages %} <user> {{ m['content'] }} <eos> w50{% endfor %} <assistant>"
TRAIN, VAL = (18, 6, 2), (3, 2, 2)
"""Target prompts with each mark: with the difference of means goes what the first of them does, and then the others."""
POINT = 1


def save_by_hand(folder: Path) -> Path:
    """Layer 0 carries marks to later tokens; layer 1 writes refusal for each by itself, Σ_i silu(g x_i) · constant."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {**SIZES, "head_dim": 8, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        embed = model.model.embed_tokens.weight
        embed[:, 12:16] = 0.2 * torch.randn(len(embed), 4, generator=generator)
        embed[:, CONSTANT] = 1
        for mark in range(3):
            embed[WORDS + 1 + mark, mark] = 1
        attention, mlp = model.model.layers[0].self_attn, model.model.layers[1].mlp
        attention.v_proj.weight[:3, MARKS] = torch.eye(3)
        attention.v_proj.weight[3:7, 12:16] = 0.2 * torch.eye(4)
        attention.o_proj.weight[SEEN, :3] = 2.5 * torch.eye(3)
        attention.o_proj.weight[16:20, 3:7] = torch.eye(4)
        mlp.gate_proj.weight[:3, SEEN] = 4 * torch.eye(3)
        mlp.up_proj.weight[:3, CONSTANT] = 1
        mlp.down_proj.weight[REFUSED, :3] = 0.04
        model.lm_head.weight[SAYS_NO, REFUSED] = model.lm_head.weight[SAYS_YES, CONSTANT] = 3
    model.save_pretrained(str(folder))
    make_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def write_prompts(place: Path) -> dict[str, str]:
    """Of every side and split a file; neutral prompts have no mark."""
    named = {}
    for number, (split, counts) in enumerate((("", TRAIN), ("_val", VAL), ("_test", VAL))):
        marks = [mark for mark, n in enumerate(counts) for _ in range(n)]
        for side in ("target", "neutral"):
            first = [f"w{1 + mark}" if side == "target" else "w9" for mark in marks]
            lines = [f"{word} w{12 + i} w{40 + number}" for i, word in enumerate(first)]
            (place / f"{side}{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            named[side + split] = str(place / f"{side}{split}.txt")
    return named


@contextmanager
def opened(tmp_path: Path, *changes: str, said: list[str] | None = None) -> Iterator[Workspace]:
    model = tmp_path / "model" if (tmp_path / "model").exists() else save_by_hand(tmp_path / "model")
    named: dict[str, Any] = {"model": {"name": str(model)}, "prompts": write_prompts(tmp_path)}
    common = ["evaluation.max_new_tokens=2", "evaluation.kl_tokens=2", 'scores.tokens=["w10"]']
    common += [
        "directions.orthogonalize=false",
        "directions.benign_rank=0",
    ]  # of so plain a model nothing would be left
    some = merge(parse_assignments(common), merge(named, parse_assignments(changes)))
    with open_workspace(some, None, tmp_path / "run", say=unheard if said is None else said.append) as workspace:
        yield workspace


def directions_of(workspace: Workspace, position: int = -1) -> Directions:
    """Those of `mean`, as a selection of this point would have left them."""
    residuals = collected(workspace).at(position)
    found = estimate_directions(residuals.target_train, residuals.neutral_train, workspace.settings.directions)
    about = {"selection": {"position": position, "point": POINT}}
    return Directions(found.vectors, torch.ones(3), found.weights, about)


def refined(workspace: Workspace, directions: Directions, shown: Tensor | None) -> Directions:
    """Without the run folder: from the model, its prompts and settings."""
    settings, model, data = workspace.settings, workspace.model, workspace.contrast
    train, val = (baseline(model, data.of(split), settings.evaluation) for split in ("train", "val"))
    tokens = behaviour_tokens(train, settings.scores, "separation")
    given = (directions, train, val, tokens, settings.directions)
    return refinement.refine(*given, temperature=settings.scores.temperature, shown=shown, say=workspace.say)


@torch.no_grad()
def log_odds(workspace: Workspace, vectors: Tensor, side: str = "target", split: str = "val") -> Tensor:
    """Prompt by prompt under the ablation of directions of `POINT`, at the temperature of the settings."""
    ones = {component: uniform(1.0, range(2), 2) for component in WRITERS}
    edit = make_edit(vectors[:, POINT, None].expand(-1, 2, -1), ones, EditConfig())
    rows = workspace.questions(getattr(workspace.contrast.of(split), side)).rows
    with preview(edit, workspace.sites):
        logits = torch.stack([workspace.model.hf(torch.tensor([row])).logits[0, -1] for row in rows])
    scaled = logits.log_softmax(-1) / workspace.settings.scores.temperature
    others = scaled[:, [token for token in range(scaled.shape[1]) if token != SAYS_NO]]
    return scaled[:, SAYS_NO] - others.logsumexp(-1)


def test_every_round_finds_what_those_before_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two further directions, the second with just as many prompts as are asked for; then nothing is left."""
    monkeypatch.setattr(refinement, "LEAST_LEFT", TRAIN[2])
    said: list[str] = []
    with opened(tmp_path, "directions.refine=5", said=said) as workspace:
        first = directions_of(workspace)
        found = refined(workspace, first, None)
        about = found.provenance["refinement"]
        assert [one["prompts"] for one in about["rounds"]] == [TRAIN[1] + TRAIN[2], TRAIN[2]]
        assert torch.equal(found.vectors[0], first.main)
        assert found.weights.tolist() == [[0, 1, 1], [0, 1, 1], [0, 1, 1]]
        assert "only 0 target train prompts still begin the behaviour; it ends here" in said[-1]

        none = torch.zeros_like(first.vectors)
        begun = {"base": (none, "target"), "neutral": (none, "neutral"), "first": (first.vectors, "target")}
        for name, (vectors, side) in begun.items():
            assert about[name] == pytest.approx(float(log_odds(workspace, vectors, side).mean()), abs=1e-3)
        before = about["first"]
        for number, one in enumerate(about["rounds"], start=2):
            after = float(log_odds(workspace, found.vectors[:number]).mean())
            assert one["log_odds"] == pytest.approx(after, abs=1e-3)
            assert one["gain"] == pytest.approx((before - after) / (about["base"] - about["neutral"]), abs=1e-4)
            assert one["gain"] > 0.1
            before = after
        assert bool((log_odds(workspace, found.vectors, split="train") < 0).all())
        # The negative control: what the difference of means alone leaves, and that each further one is needed.
        kept = [int((log_odds(workspace, found.vectors[:k], split="train") > 0).sum()) for k in (1, 2)]
        assert kept == [TRAIN[1] + TRAIN[2], TRAIN[2]]


def test_a_round_that_gains_too_little_is_not_kept_and_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "LEAST_LEFT", 2)
    said: list[str] = []
    with opened(tmp_path, "directions.refine=5", "directions.refine_gain=5", said=said) as workspace:
        first = directions_of(workspace)
        found = refined(workspace, first, None)
        assert torch.equal(found.vectors, first.vectors)
        assert torch.equal(found.weights, first.weights)
        assert len(found.provenance["refinement"]["rounds"]) == 1
        assert "not kept; it ends here" in said[-1]


def test_with_too_few_prompts_left_nothing_is_estimated(tmp_path: Path) -> None:
    said: list[str] = []
    with opened(tmp_path, "directions.refine=5", said=said) as workspace:
        first = directions_of(workspace)
        found = refined(workspace, first, None)
    assert torch.equal(found.vectors, first.vectors)
    assert said[-1] == "refinement 1: only 8 target train prompts still begin the behaviour; it ends here"


@pytest.mark.parametrize(("position", "token"), [(-1, "<assistant>"), (-2, "w50")])
def test_a_round_is_estimated_where_the_directions_are_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int, token: str
) -> None:
    """At their position, under the edit, on the target prompts that are left, which a probe then takes as shown."""
    monkeypatch.setattr(refinement, "LEAST_LEFT", 2)
    seen: list[tuple[Any, ...]] = []

    def spy(*given: Any) -> Any:
        seen.append(given)
        return estimate_directions(*given)

    monkeypatch.setattr(refinement, "estimate_directions", spy)
    shown = torch.arange(2 * sum(TRAIN)) % 3 == 0
    with opened(tmp_path, "directions.refine=1", "activations.positions=2") as workspace:
        first = directions_of(workspace, position)
        refined(workspace, first, shown)
        train = log_odds(workspace, first.vectors, split="train") > 0
        embedding = workspace.model.hf.get_input_embeddings().weight
        token_id = workspace.model.tokenizer.convert_tokens_to_ids(token)
        plain = collected(workspace).at(position)
    (target, neutral, _, labels, _), left = seen[0], train.nonzero()[:, 0]
    assert torch.allclose(target[:, 0], embedding[token_id].expand(len(left), -1), atol=1e-6)
    assert torch.equal(labels, torch.cat([torch.ones(len(left), dtype=torch.bool), shown[len(train) :]]))
    for rows, unedited in ((target, plain.target_train[left]), (neutral, plain.neutral_train)):
        # Layer 0 alone writes before this point, so that the edit there is a projection of its difference.
        v, write = first.main[POINT], unedited[:, POINT] - unedited[:, 0]
        assert torch.allclose(rows[:, POINT], unedited[:, 0] + write - torch.outer(write @ v, v), atol=1e-5)
    assert float((target[:, POINT] - plain.target_train[left][:, POINT]).norm()) > 0.1


def test_directions_come_out_refined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "LEAST_LEFT", 2)
    for refine, k in ((0, 1), (1, 2)):
        changes = f"directions.refine={refine}", "directions.selection.drop_last=0.5"  # up to point 1
        with opened(tmp_path, *changes) as workspace:
            found = estimated(workspace, collected(workspace))
            assert (len(found.vectors), "refinement" in found.provenance) == (k, refine > 0)
            if refine == 0:
                unrefined = found
            else:  # the stage calls the plain function
                plain = refined(workspace, unrefined, None)
                assert torch.allclose(plain.vectors, found.vectors, atol=1e-5)
                assert not torch.allclose(plain.vectors[1], unrefined.vectors[0], atol=0.1)
