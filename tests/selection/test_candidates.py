"""Scores of many candidates in batches are those of each alone, previewed as an edit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.architecture.post_norm import post_norm_gains
from iconoclast_tl.architecture.sites import WRITERS
from iconoclast_tl.directions.geometry import orthonormalize
from iconoclast_tl.edits.addition import Addition, make_addition
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import Edit, make_edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.edits.profiles import uniform
from iconoclast_tl.evaluation.metrics.divergence import kl_divergence
from iconoclast_tl.models.model import Model
from iconoclast_tl.scores.odds import token_log_odds
from iconoclast_tl.selection.candidates import CandidateScorer, CandidateScores, Changes, least_alike
from tests.activations.last_position import collect_last_position
from tests.architectures import save_architecture

TOKENS = torch.tensor([9, 17])
Load = Callable[..., Model]


def changes(model: Model, k: int = 1) -> Changes:
    """Of points 1, 2 and 2 again, each with directions of its own."""
    generator = torch.Generator().manual_seed(0)
    vectors = orthonormalize(torch.randn(k, 3, model.d_model, generator=generator)).transpose(0, 1)
    strengths = torch.tensor([1.0, 0.5])[:k].expand(3, k).clone()
    return Changes(vectors, strengths, torch.tensor([1, 2, 2]), torch.tensor([3.0, -2.0, 4.0]))


def last_log_probs(model: Model, row: list[int]) -> Tensor:
    with torch.no_grad():
        return model.hf(torch.tensor([row])).logits[0, -1].float().log_softmax(-1)


def residuals(model: Model, rows: list[list[int]]) -> Tensor:
    return collect_last_position(model, None, rows, 1).residuals.double().mean(0)


def ablation(model: Model, given: Changes, number: int) -> Edit:
    n_layers = model.n_layers
    ones = {component: uniform(1.0, range(n_layers), n_layers) for component in WRITERS}
    vectors = given.vectors[number][:, None].expand(-1, n_layers, -1)
    weights = given.strengths[number][:, None].expand(-1, n_layers)
    config = EditConfig(scope="stream")
    return make_edit(vectors, ones, config, Ground(gains=post_norm_gains(model.hf)), weights)


def one_by_one(
    model: Model, given: Changes, target: list[list[int]], neutral: list[list[int]], points: list[int]
) -> CandidateScores:
    """The slow way: every candidate an edit of its own, every prompt a pass of its own."""
    sites, found = hf_sites(model.hf), []
    base = [last_log_probs(model, row) for row in neutral]
    means = {name: residuals(model, rows)[points] for name, rows in (("target", target), ("neutral", neutral))}
    for number in range(len(given.points)):
        with preview(ablation(model, given, number), sites):
            bypass = torch.stack([token_log_odds(last_log_probs(model, row), TOKENS) for row in target]).mean()
            kl = torch.stack([kl_divergence(b, last_log_probs(model, r)) for b, r in zip(base, neutral, strict=True)])
            ablated = residuals(model, target)[points]
        point, alpha = int(given.points[number]), float(given.coefficients[number])
        with preview(make_addition(Addition(given.vectors[number, 0], point, alpha), model.n_layers), sites):
            induce = torch.stack([token_log_odds(last_log_probs(model, row), TOKENS) for row in neutral]).mean()
            added = residuals(model, neutral)[points]
        cosine = torch.nn.functional.cosine_similarity
        to_neutral, to_target = cosine(ablated, means["neutral"]).mean(), cosine(added, means["target"]).mean()
        found.append((bypass, induce, kl.mean(), to_neutral.float(), to_target.float()))
    return CandidateScores(*(torch.stack(column) for column in zip(*found, strict=True)))


@pytest.mark.parametrize(("name", "k", "batch_size"), [("Llama", 1, 4), ("Llama", 2, 64), ("Gemma 2", 1, 5)])
def test_batches_of_candidates_score_as_each_alone(
    load: Load, tmp_path: Path, rows: list[list[int]], name: str, k: int, batch_size: int
) -> None:
    model = load(save_architecture(tmp_path, name))
    target, neutral, points = rows[:3], rows[3:], [1, 2]
    base = torch.stack([last_log_probs(model, row) for row in neutral])
    scorer = CandidateScorer(
        model=model, target=target, neutral=neutral, tokens=TOKENS, base=base, points=points, batch_size=batch_size
    )
    given = changes(model, k)
    means = (residuals(model, side)[points].float() for side in (target, neutral))
    found, expected = scorer.score(given, *means), one_by_one(model, given, target, neutral, points)
    for score, wanted in vars(expected).items():
        # 2e-4: float32 attention over other paddings, in log-odds and cosines.
        torch.testing.assert_close(getattr(found, score), wanted, atol=2e-4, rtol=2e-4)
        assert float(wanted.max() - wanted.min()) > 1e-3, "candidates that all score the same would tell nothing"


def test_without_tokens_there_are_no_log_odds_and_the_rest_stays(llama: Model, rows: list[list[int]]) -> None:
    base = torch.stack([last_log_probs(llama, row) for row in rows[3:]])

    def scorer(tokens: Tensor) -> CandidateScorer:
        return CandidateScorer(
            model=llama, target=rows[:3], neutral=rows[3:], tokens=tokens, base=base, points=[1], batch_size=8
        )

    means = residuals(llama, rows[:3])[[1]].float(), residuals(llama, rows[3:])[[1]].float()
    with_tokens = scorer(TOKENS).score(changes(llama), *means)
    without = scorer(torch.tensor([], dtype=torch.long)).score(changes(llama), *means)
    assert bool(without.bypass.isnan().all())
    assert torch.equal(without.kl, with_tokens.kl)
    assert torch.equal(without.to_target, with_tokens.to_target)


def test_the_points_that_are_least_alike() -> None:
    target = torch.eye(6)
    neutral = torch.eye(6).clone()
    neutral[3] = torch.tensor([0, 0, 0, 0.1, 1, 0])
    neutral[4] = torch.tensor([0, 0, 0, 1, 0.5, 0])
    neutral[5] = -target[5]  # the last point is after the last layer, and no layer reads it
    assert least_alike(target, neutral, 0.1) == [3]
    assert least_alike(target, neutral, 0.5) == [3, 4]
