"""How well a model predicts texts that an edit should leave alone: cross-entropy loss, and perplexity.

    CE = −Σ log p(token | what stands before it) / number of tokens     in nats a token, over all scored tokens
    perplexity = exp(CE)

The loss of Arditi et al. (2406.11717), over corpora of `evaluation.corpora`. A long text weighs more than a short one,
as it has more tokens; the interval comes from drawing texts, not tokens, anew: tokens of one text hang together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from iconoclast_tl.evaluation.corpora import Corpus
from iconoclast_tl.execution.batching import over_batches
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import TokenBatch

RESAMPLES: Final = 2000
SEED: Final = 0


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Mean negative log-likelihood in nats a token over n texts, with a 95% bootstrap interval over texts."""

    corpus: str
    value: float
    low: float | None
    """None for a single text, which has no interval."""
    high: float | None
    n: int
    tokens: int
    """Scored tokens of all texts."""
    nll: tuple[float, ...]
    """Of every text, summed over its tokens, in nats."""
    counts: tuple[int, ...]
    """Scored tokens of every text."""

    @property
    def perplexity(self) -> float:
        """exp(value); infinite where that overflows."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.value))

    def to_json(self) -> dict[str, float | int | None]:
        """As it stands in results.json, without the single texts; null for what is not finite."""
        return {
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "perplexity": _finite(self.perplexity),
            "n": self.n,
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class CrossEntropyChange:
    """CE(edited) − CE(base) in nats a token, over the same texts, with a 95% interval of the paired bootstrap."""

    corpus: str
    value: float
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """As it stands in results.json."""
        return {"value": _finite(self.value), "low": _finite(self.low), "high": _finite(self.high), "n": self.n}


def cross_entropy(model: Model, corpus: Corpus, batch_size: int, track: Track = silent) -> CrossEntropy:
    """CE of the model as it is now, under whatever hooks are on or with whatever adapter is loaded.

    Memory: logits of one batch, batch · scored tokens · vocabulary values of the model's dtype; the batch is halved
    where that does not fit. log-softmax in float32 (float64 for a float64 model), sums in float64.
    """
    nll = [0.0] * len(corpus.rows)
    # What is fed: the last scored token is predicted and predicts nothing.
    fed = [[*row.context, *row.scored[:-1]] for row in corpus.rows]

    def score(batch: TokenBatch) -> None:
        found = _batch_nll(model, batch, [corpus.rows[row].scored for row in batch.rows])
        for row, value in zip(batch.rows, found, strict=True):
            nll[row] = value

    over_batches(score, fed, model.pad_id, batch_size, track, f"loss, {corpus.name}")
    counts = tuple(len(row.scored) for row in corpus.rows)
    value, low, high = _ratio(np.array(nll), np.array(counts))
    return CrossEntropy(
        corpus=corpus.name,
        value=value,
        low=low,
        high=high,
        n=len(nll),
        tokens=sum(counts),
        nll=tuple(nll),
        counts=counts,
    )


def change(base: CrossEntropy, edited: CrossEntropy) -> CrossEntropyChange:
    """The difference between two models on the same texts; `ValueError` where they are not the same."""
    if (base.corpus, base.counts) != (edited.corpus, edited.counts):
        raise ValueError("cross-entropies of different texts have no paired difference")
    value, low, high = _ratio(np.array(edited.nll) - np.array(base.nll), np.array(base.counts))
    return CrossEntropyChange(base.corpus, value, low, high, base.n)


@torch.no_grad()
def _batch_nll(model: Model, batch: TokenBatch, scored: Sequence[Sequence[int]]) -> list[float]:
    """Of each row the sum of −log p of its scored tokens.

    Rows are padded on the left, so that the last column predicts the last token of all of them.
    """
    k = max(len(tokens) for tokens in scored)
    logits: Tensor = model.hf(**model.inputs(batch), logits_to_keep=k, use_cache=False).logits
    return [_row_nll(logits[row, -len(tokens) :], torch.tensor(tokens)) for row, tokens in enumerate(scored)]


def _row_nll(logits: Tensor, tokens: Int[Tensor, "k"]) -> float:
    """Row by row, since float32 copies of the whole batch's logits would be larger than the logits."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nll = torch.nn.functional.cross_entropy(precise, tokens.to(precise.device), reduction="none")
    return float(nll.cpu().double().sum())


def _ratio(nll: NDArray[Any], tokens: NDArray[Any]) -> tuple[float, float | None, float | None]:
    """Σ nll / Σ tokens with its 95% percentile interval, texts drawn with replacement."""
    from scipy.stats import bootstrap

    value = float(nll.sum() / tokens.sum())
    if len(nll) == 1 or not np.isfinite(nll).all():
        return value, None, None
    interval = bootstrap(
        (nll, tokens),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(nll)),  # so that memory does not grow with the corpus
        method="percentile",
        random_state=SEED,
    ).confidence_interval
    return value, float(interval.low), float(interval.high)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
