"""The loss is the one that transformers computes, its interval is over texts, and an edit moves it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.evaluation.corpora import Corpus, Text, on_distribution
from iconoclast_tl.evaluation.metrics.cross_entropy import CrossEntropy, _ratio, change, cross_entropy
from iconoclast_tl.execution.generation import generate
from iconoclast_tl.models.model import Model
from tests.conftest import VOCABULARY
from tests.edits.edits import random_edit, scaled

ROUNDING = 1e-5
"""In nats: Llama's norms compute in float32 whatever the model's dtype, and batches of other shapes add up in another
order. What a wrong position, mask or row would do is a thousand times as much."""


@pytest.fixture
def double(llama_folder: Path, load: Callable[..., Model]) -> Model:
    """The plain Llama in float64."""
    return load(llama_folder, "float64")


@pytest.fixture
def corpus(rows: list[list[int]]) -> Corpus:
    """Contexts and continuations of different lengths, one of a single token each."""
    cuts = (1, 4, 2, 7, 1, 1, 9)
    return Corpus("texts", tuple(Text(row[:cut], row[cut:]) for row, cut in zip(rows, cuts, strict=True)))


def made(nll: Any, counts: Any) -> CrossEntropy:
    """A result of given texts."""
    each, of = np.array(nll, dtype=float), np.array(counts)
    value, low, high = _ratio(each, of)
    return CrossEntropy(
        corpus="texts", value=value, low=low, high=high, n=len(each), tokens=int(of.sum()),
        nll=tuple(each.tolist()), counts=tuple(of.tolist()),
    )  # fmt: skip


@torch.no_grad()
def test_it_is_the_loss_of_transformers_and_of_a_plain_loop(double: Model, corpus: Corpus) -> None:
    found = cross_entropy(double, corpus, 3)
    for text, nll, n in zip(corpus.rows, found.nll, found.counts, strict=True):
        ids = torch.tensor([[*text.context, *text.scored]])
        labels = torch.tensor([[-100] * len(text.context) + text.scored])
        loss = double.hf(input_ids=ids, labels=labels).loss
        assert nll / n == pytest.approx(float(loss), abs=ROUNDING)
        logits = double.hf(input_ids=ids).logits[0]
        by_hand = -sum(logits[i - 1].log_softmax(-1)[ids[0, i]] for i in range(len(text.context), ids.shape[1]))
        assert nll == pytest.approx(float(by_hand), abs=ROUNDING)
    assert found.value == pytest.approx(sum(found.nll) / sum(len(text.scored) for text in corpus.rows), abs=1e-12)
    assert (found.n, found.tokens) == (7, sum(found.counts))
    assert found.perplexity == pytest.approx(math.exp(found.value))
    assert found.low is not None
    assert found.low < found.value < found.high
    assert found.to_json() == {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "perplexity": found.perplexity,
        "n": 7,
        "tokens": found.tokens,
    }


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_batches_and_padding_change_nothing(double: Model, corpus: Corpus, batch_size: int) -> None:
    expected = cross_entropy(double, corpus, 3).nll
    assert cross_entropy(double, corpus, batch_size).nll == pytest.approx(expected, abs=ROUNDING)
    backwards = replace(corpus, rows=corpus.rows[::-1])
    assert cross_entropy(double, backwards, batch_size).nll[::-1] == pytest.approx(expected, abs=ROUNDING)
    assert len({round(one, 3) for one in expected}) == 7  # so that a permutation would show


def test_where_memory_runs_out_the_batch_is_halved_and_the_loss_is_the_same(double: Model, corpus: Corpus) -> None:
    expected, asked = cross_entropy(double, corpus, 50).nll, list[int]()

    def small(module: Any, args: Any, kwargs: Any) -> None:
        asked.append(len(kwargs["input_ids"]))
        if asked[-1] > 2:
            raise torch.OutOfMemoryError

    handle = double.hf.register_forward_pre_hook(small, with_kwargs=True)
    assert cross_entropy(double, corpus, 50).nll == pytest.approx(expected, abs=ROUNDING)
    handle.remove()
    assert asked == [7, 4, 2, 2, 2, 1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_half_precision_logits_are_scored_in_float32(
    llama_folder: Path, load: Callable[..., Model], corpus: Corpus, dtype: str
) -> None:
    """A log-softmax in bfloat16 would keep three digits; only the logits themselves may be rounded."""
    model = load(llama_folder, dtype)
    with torch.no_grad():
        for text, nll in zip(corpus.rows, cross_entropy(model, corpus, 1).nll, strict=True):
            fed = torch.tensor([[*text.context, *text.scored[:-1]]])
            logits = model.hf(input_ids=fed).logits[0, -len(text.scored) :].double()
            exact = -logits.log_softmax(-1)[torch.arange(len(text.scored)), text.scored].sum()
            assert nll == pytest.approx(float(exact), rel=1e-5)  # float32's rounding; bfloat16's is 4e-3


def test_an_edit_moves_it_and_an_edit_of_no_strength_does_not(llama: Model, corpus: Corpus) -> None:
    base = cross_entropy(llama, corpus, 4)
    found = {}
    for factor in (0.0, 1.0):
        with preview(scaled(random_edit(), factor), hf_sites(llama.hf)):
            found[factor] = cross_entropy(llama, corpus, 4)
    assert found[0.0] == base
    assert change(base, found[0.0]).to_json() == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 7}
    moved = change(base, found[1.0])
    assert abs(moved.value) > 0.01
    assert moved.value == pytest.approx(found[1.0].value - base.value, abs=1e-9)
    assert cross_entropy(llama, corpus, 4) == base  # nothing is left on


def test_a_model_expects_what_it_says_itself_more_than_the_same_in_another_order(
    llama: Model, rows: list[list[int]]
) -> None:
    said = [response.tokens for response in generate(llama, rows, 12, 4)]
    generator = torch.Generator().manual_seed(0)
    shuffled = [[one[i] for i in torch.randperm(len(one), generator=generator)] for one in said]
    own = cross_entropy(llama, on_distribution(rows, said), 4)
    other = cross_entropy(llama, on_distribution(rows, shuffled), 4)
    assert own.counts == other.counts == tuple(map(len, said))
    assert own.value < other.value
    likeliest = math.log(VOCABULARY)  # greedy tokens are likelier than any other: under the loss of a coin of 64 sides
    assert own.value < likeliest


def test_long_texts_weigh_by_their_tokens_and_texts_are_what_is_drawn_anew() -> None:
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 60, 80)
    nll = counts * rng.normal(3, 0.6, 80)
    found = made(nll, counts)
    assert found.value == pytest.approx(nll.sum() / counts.sum())
    assert abs(found.value - (nll / counts).mean()) > 0.01  # the mean of means is another number
    drawn = rng.integers(0, 80, (20_000, 80))
    low, high = np.quantile(nll[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    # 2000 resamples place an end of the interval to about 5% of its width.
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.high == pytest.approx(high, abs=0.1 * (high - low))
    assert made(nll, counts) == found  # seeded


def test_a_difference_is_paired_text_by_text() -> None:
    rng = np.random.default_rng(5)
    counts = rng.integers(5, 60, 50)
    nll = counts * rng.normal(3, 1, 50)
    base, shifted = made(nll, counts), made(nll + 0.1 * counts, counts)
    moved = change(base, shifted)
    assert (moved.value, moved.low, moved.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-9)
    assert base.high is not None
    assert base.low is not None
    assert base.high - base.low > 0.2  # unpaired, 0.1 would drown
    other = made(nll[::-1] + 0.1 * counts, counts)
    assert change(base, other).high - change(base, other).low > 0.2  # type: ignore[operator]
    with pytest.raises(ValueError, match="different texts"):
        change(base, made(nll, counts[::-1]))


def test_one_text_has_no_interval_and_a_broken_model_no_number() -> None:
    one = made([6.0], [3])
    assert (one.value, one.low, one.high) == (2.0, None, None)
    assert change(one, made([7.5], [3])).to_json() == {"value": 0.5, "low": None, "high": None, "n": 1}
    broken = made([math.nan, 3.0], [2, 2])
    assert broken.to_json() == {"value": None, "low": None, "high": None, "perplexity": None, "n": 2, "tokens": 4}
    assert made([9e3, 9e3], [2, 2]).to_json()["perplexity"] is None  # overflows
