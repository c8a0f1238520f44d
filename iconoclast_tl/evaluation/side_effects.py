"""What else a change moved: the cross-entropy on texts, of the model alone and under the change."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from iconoclast_tl.evaluation.base_and_edited import ChangedModel
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.corpora import ON_DISTRIBUTION, Corpus, load_corpus, on_distribution
from iconoclast_tl.evaluation.metrics.cross_entropy import CrossEntropy, cross_entropy
from iconoclast_tl.evaluation.metrics.cross_entropy import change as difference
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.models.model import Model


def load_corpora(config: EvaluationConfig, model: Model) -> dict[str, Corpus]:
    """The corpora that the settings name, without `on-distribution`, which the base has yet to say.

    Texts end at `corpus_tokens`, or at the model's context length. `UserError` for a source that cannot be read.
    """
    longest = min(config.corpus_tokens, model.context_length or config.corpus_tokens)
    named = [name for name in config.corpora if name != ON_DISTRIBUTION]
    return {name: load_corpus(name, model.chat, config.corpus_texts, longest) for name in named}


def own_responses(base: Baseline) -> Corpus:
    """The corpus `on-distribution`: what the base says to neutral prompts."""
    return on_distribution(base.suite["neutral"].rows, [response.tokens for response in base.responses["neutral"]])


def cross_entropies(
    base: Baseline, corpora: Mapping[str, Corpus], change: ChangedModel | None = None
) -> dict[str, dict[str, Any]]:
    """Corpus → `base` and `edited`: nats a token and perplexity; `change`: their paired difference. As JSON."""
    found = {"base": _losses(base, corpora, None)}
    if change is not None:
        found["edited"] = _losses(base, corpora, change)
    result: dict[str, dict[str, Any]] = {}
    for name in corpora:
        losses = {model: one[name] for model, one in found.items()}
        result[name] = {model: one.to_json() for model, one in losses.items()}
        if change is not None:
            result[name]["change"] = difference(losses["base"], losses["edited"]).to_json()
    return result


def _losses(base: Baseline, corpora: Mapping[str, Corpus], change: ChangedModel | None) -> dict[str, CrossEntropy]:
    with change() if change is not None else nullcontext():
        return {
            name: cross_entropy(base.model, one, base.config.batch_rows, base.track) for name, one in corpora.items()
        }
