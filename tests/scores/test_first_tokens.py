"""First tokens: found from the first position alone, or named, and how well they tell the two sets apart."""

from __future__ import annotations

import pytest
import torch

from iconoclast_tl.detectors.registry import make_detector
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.scores.first_tokens import first_tokens
from tests.search.test_objective import questions


def baseline(model: Model, target: list[list[int]], neutral: list[list[int]]) -> Baseline:
    config = EvaluationConfig(max_new_tokens=3, kl_tokens=2, batch_size=2)
    return Baseline(
        model,
        {"target": questions(target), "neutral": questions(neutral)},
        config,
        make_detector(config, config.detector),
    )


@torch.no_grad()
def probabilities(model: Model, rows: list[list[int]]) -> torch.Tensor:
    """One prompt at a time."""
    return torch.stack([model.hf(torch.tensor([row])).logits[0, -1].softmax(-1) for row in rows])


def share_of_pairs(target: torch.Tensor, neutral: torch.Tensor) -> float:
    return float((target[:, None] > neutral[None]).float().mean())


def test_tokens_are_those_that_rise_and_their_auroc_counts_pairs(llama: Model, rows: list[list[int]]) -> None:
    target, neutral = rows[:4], rows[4:]
    after, before = probabilities(llama, target), probabilities(llama, neutral)
    found = first_tokens(baseline(llama, target, neutral), ())
    rise = after.mean(0) - before.mean(0)
    assert 0 < len(found.ids) <= 8
    assert found.ids.tolist() == rise.argsort(descending=True)[: len(found.ids)].tolist()
    said = [p[:, found.ids].sum(-1) for p in (after, before)]
    assert found.auroc == pytest.approx(share_of_pairs(said[0], said[1]))
    assert found.auroc > 0.5
    assert found.words == tuple(llama.tokenizer.decode([token]) for token in found.ids.tolist())
    named = first_tokens(baseline(llama, target, neutral), ["w9"])
    said = [p[:, named.ids].sum(-1) for p in (after, before)]
    assert named.auroc == pytest.approx(share_of_pairs(said[0], said[1]))
    assert named.auroc != 0.5


def test_named_words_stand_for_their_first_tokens(llama: Model, rows: list[list[int]]) -> None:
    from tokenizers.processors import TemplateProcessing

    core = llama.tokenizer.backend_tokenizer
    core.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    assert llama.tokenizer("w9")["input_ids"][0] == 1  # this tokenizer begins every text with a special token
    base = baseline(llama, rows[:4], rows[4:])
    found = first_tokens(base, ["w9 w1", "w3", "w9"])
    assert found.words == ("w3", "w9")
    assert found.to_json()["words"] == ["w3", "w9"]
    with pytest.raises(UserError, match="a first token of the behaviour is empty: got ' '"):
        first_tokens(base, ["w9", " "])


def test_where_no_token_rises_there_is_nothing_to_tell_apart(llama: Model, rows: list[list[int]]) -> None:
    found = first_tokens(baseline(llama, rows[:3], rows[:3]), ())
    assert (found.ids.tolist(), found.words, found.auroc) == ([], (), 0.5)
