"""First tokens of a behaviour: those likelier on target than on neutral prompts, and how well they separate the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.directions.separation import auroc
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.suite import Questions
from iconoclast_tl.execution.batching import over_batches
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import TokenBatch
from iconoclast_tl.scores.odds import rising_tokens, token_log_odds


@dataclass(frozen=True)
class FirstTokens:
    """Tokens, and the AUROC of their log-odds at the first position (0.5 where there are none)."""

    ids: Int[Tensor, "t"]
    words: tuple[str, ...]
    auroc: float

    def to_json(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return {"ids": self.ids.tolist(), "words": list(self.words), "auroc": self.auroc}


def first_tokens(base: Baseline, named: Sequence[str]) -> FirstTokens:
    """Find the tokens, or take those that are named; no hooks may be on."""
    model = base.model
    before, after = (first_log_probs(model, base.suite[side], base.config.batch_rows) for side in ("neutral", "target"))
    ids = _named(model, named) if named else rising_tokens(after, before)
    if not len(ids):
        return FirstTokens(ids, (), 0.5)
    told = auroc(token_log_odds(after, ids), token_log_odds(before, ids))
    return FirstTokens(ids, tuple(model.tokenizer.decode([token]) for token in ids.tolist()), told)


def _named(model: Model, words: Sequence[str]) -> Int[Tensor, "t"]:
    ids = []
    for word in words:
        found = model.tokenizer(word, add_special_tokens=False)["input_ids"]
        if not found:
            raise UserError("a first token of the behaviour is empty", got=repr(word), want="text")
        ids.append(found[0])
    return torch.tensor(sorted(set(ids)))


@torch.no_grad()
def first_log_probs(model: Model, questions: Questions, batch_size: int) -> Float[Tensor, "n vocab"]:
    """Log-probabilities of the first token of the response to every prompt, under the hooks that are on."""
    found: dict[int, Tensor] = {}

    def read(batch: TokenBatch) -> None:
        logits = model.hf(**model.inputs(batch), logits_to_keep=1).logits[:, -1].float().cpu()
        found.update(zip(batch.rows, logits.log_softmax(-1), strict=True))

    over_batches(read, questions.rows, model.pad_id, batch_size)
    return torch.stack([found[row] for row in range(len(questions.rows))])
