"""The prompts that a model is asked (target, neutral, perhaps borderline), and the settings of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from iconoclast_tl.detectors.config import DetectorConfig
from iconoclast_tl.detectors.detector import Exchange
from iconoclast_tl.evaluation.corpora import ON_DISTRIBUTION, require_corpus
from iconoclast_tl.execution.batch_size import UNMEASURED, BatchSize
from iconoclast_tl.execution.generation import Response, generate
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.foundation.stage_config import Changeable
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.chat import ChatFormat
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.prompts.tokens import Tokens, require_context

Truth = Callable[[str, str], str]
"""(prompt, response) → grade, where the truth is known (organisms): answered, refused or broken."""


class EvaluationConfig(DetectorConfig):
    """What counts as the behaviour, how long a response may be, and what else is measured."""

    max_new_tokens: int = Field(64, ge=1)
    """The response budget; it belongs to every rate."""
    kl_tokens: int = Field(16, ge=1)
    """Tokens of the base's own continuation over which the sequence KL is averaged; never more than the budget."""
    budgets: Annotated[tuple[int, ...], Changeable] = ()
    """Smaller response budgets at which the behaviour rate is reported, too, from the same responses."""
    corpora: Annotated[tuple[str, ...], Changeable] = (ON_DISTRIBUTION,)
    """Texts on which the cross-entropy of base and edited is measured: `on-distribution` (what the base says to neutral
    prompts), `pile`, `alpaca`, or sources of one's own, `FILE#column` of texts or `FILE#question->answer` of chats."""
    corpus_texts: Annotated[int, Changeable] = Field(256, ge=1)
    """Texts of every such corpus."""
    corpus_tokens: Annotated[int, Changeable] = Field(256, ge=2)
    """Tokens of every text, the rest is cut off."""
    keep_prompts: Annotated[bool, Changeable] = False
    """Keep the text of prompts in responses.jsonl, beside their ids."""
    batch_size: Annotated[BatchSize, Changeable] = "auto"
    """Prompts in one forward pass, `auto`: as memory has room for (measured). Halved by itself where it runs out."""

    @property
    def batch_rows(self) -> int:
        """Prompts in one forward pass; where that is `auto` and nobody has measured, a small number."""
        return UNMEASURED if self.batch_size == "auto" else self.batch_size

    @property
    def kl_length(self) -> int:
        """How many tokens the sequence KL can cover."""
        return min(self.kl_tokens, self.max_new_tokens)

    def shortened(self, tokens: int) -> EvaluationConfig:
        """The same with a response budget of at most so many tokens."""
        return self.model_copy(update={"max_new_tokens": min(self.max_new_tokens, tokens)})

    def require_possible(self) -> None:
        """Raise `UserError` for a corpus that does not exist, and for a budget beyond `max_new_tokens`."""
        for name in self.corpora:
            require_corpus(name)
        for budget in self.budgets:
            if not 0 < budget <= self.max_new_tokens:
                raise UserError(
                    "a budget lies outside the response budget",
                    got=budget,
                    want=f"1 to {self.max_new_tokens} tokens",
                    mend="leave it out, or evaluate into another --out with a larger evaluation.max_new_tokens",
                )


@dataclass(frozen=True)
class Questions:
    """Prompts with their tokens."""

    prompts: tuple[Prompt, ...]
    rows: tuple[Tokens, ...]

    def exchanges(self, responses: Sequence[Response]) -> list[Exchange]:
        """Each prompt with its response, as detectors are shown them."""
        return [Exchange(r.text, prompt.text) for prompt, r in zip(self.prompts, responses, strict=True)]


def encode(prompts: Sequence[Prompt], chat: ChatFormat, context_length: int | None, new_tokens: int = 0) -> Questions:
    """Tokenise prompts; `UserError` where one does not fit the context with the tokens to come."""
    rows = tuple(chat.encode(prompt) for prompt in prompts)
    require_context(rows, new_tokens, context_length)
    return Questions(tuple(prompts), rows)


def respond(
    model: Model, suite: Mapping[str, Questions], config: EvaluationConfig, track: Track = silent
) -> dict[str, list[Response]]:
    """Greedy responses to every set of the suite, generated together."""
    rows = [row for questions in suite.values() for row in questions.rows]
    responses = iter(generate(model, rows, config.max_new_tokens, config.batch_rows, track, "generate"))
    return {name: [next(responses) for _ in questions.rows] for name, questions in suite.items()}
