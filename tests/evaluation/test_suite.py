"""A suite: every set's responses come back to it."""

from __future__ import annotations

from iconoclast_tl.evaluation.suite import EvaluationConfig, Questions, respond
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.prompt import Prompt


def questions(n: int, category: str | None = None) -> Questions:
    return Questions(tuple(Prompt(f"p{i}", None, category) for i in range(n)), tuple([i + 3] for i in range(n)))


def test_responses_come_back_to_the_set_that_asked(llama: Model) -> None:
    suite = {"target": questions(5), "neutral": questions(3)}
    config = EvaluationConfig(max_new_tokens=4, batch_size=3)
    together = respond(llama, suite, config)
    alone = {name: respond(llama, {name: asked}, config)[name] for name, asked in suite.items()}
    assert together == alone
    assert together["target"][0] != together["target"][1]
