"""Scores by name: those of this package, and those that users bring by `itl.score` or an entry point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.registry import Registry, called
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import Tokens
from iconoclast_tl.scores.config import ScoreConfig
from iconoclast_tl.scores.first_tokens import first_log_probs
from iconoclast_tl.scores.log_odds import LogOdds
from iconoclast_tl.scores.logit_difference import LogitDifference
from iconoclast_tl.scores.odds import rising_tokens
from iconoclast_tl.scores.prefixes import Layout, known_prefixes
from iconoclast_tl.scores.projection import Projection
from iconoclast_tl.scores.score import Score, ScoreBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreInputs:
    """What a score may be made from; what takes passes of the model is found when it is first asked for."""

    base: Baseline
    """The unedited model on target and neutral prompts, with what it says."""
    direction: Float[Tensor, "d_model"] | None
    """The unit direction in question; None where layers have different ones."""
    config: ScoreConfig
    split: str = "train"
    """Which prompts `base` has, for messages."""

    @property
    def model(self) -> Model:
        """The model."""
        return self.base.model

    @cached_property
    def layout(self) -> Layout:
        """The beginnings of responses by which the behaviour is known; `UserError` where no response shows it."""
        self.base.require_shown(self.split)
        return known_prefixes(self.base).layout()

    @cached_property
    def first_tokens(self) -> tuple[Int[Tensor, "t"], Int[Tensor, "u"]]:
        """The first tokens that are likelier on target than on neutral prompts, and those that are less likely."""
        base, suite = self.base, self.base.suite
        after, before = (
            first_log_probs(base.model, suite[side], base.config.batch_rows) for side in ("target", "neutral")
        )
        return rising_tokens(after, before), rising_tokens(before, after)


MakeScore = Callable[[ScoreInputs, Sequence[Tokens]], Score]
"""Makes the score of some prompts."""


def _log_odds(inputs: ScoreInputs, rows: Sequence[Tokens]) -> Score:
    return LogOdds(inputs.model, rows, inputs.layout, inputs.config.temperature)


def _logit(inputs: ScoreInputs, rows: Sequence[Tokens]) -> Score:
    return LogitDifference(inputs.model, rows, *inputs.first_tokens)


def _projection(inputs: ScoreInputs, rows: Sequence[Tokens]) -> Score:
    if inputs.direction is None:
        raise UserError(
            "the projection is on one direction",
            got="an edit whose layers have different directions",
            mend="pass direction=, such as directions.at(5), or another score",
        )
    return Projection(inputs.model, rows, inputs.direction)


class OwnScore:
    """A score of the user's, asked under its registered name, and with what it returns checked."""

    def __init__(self, name: str, inner: Score) -> None:
        self.name, self.model, self._inner = name, inner.model, inner

    def ask(self, prompts: Int[Tensor, "n"]) -> ScoreBatch:
        """Lay these prompts out; `UserError` where it raises an error or returns anything but a `ScoreBatch`."""
        asked: Any = called(self._what, self._inner.ask, prompts)
        if not isinstance(asked, ScoreBatch):
            raise UserError(f"{self._what} lays out no batch", got=type(asked).__name__, want="a ScoreBatch")
        return asked

    def read(self, asked: ScoreBatch, candidates: int = 1) -> Float[Tensor, "candidate n"]:
        """The scores; `UserError` where it raises an error or returns another shape."""
        found: Any = called(self._what, self._inner.read, asked, candidates)
        shape = tuple(getattr(found, "shape", ()))
        if not isinstance(found, Tensor) or shape != (candidates, asked.n):
            raise UserError(
                f"{self._what} returns another shape",
                got=shape if isinstance(found, Tensor) else type(found).__name__,
                want=f"(candidate, prompt) = {(candidates, asked.n)}",
            )
        return found

    @property
    def _what(self) -> str:
        return f"the score {self.name}"


def own_score(name: str, make: Callable[..., Any]) -> MakeScore:
    """A user's function as one that makes a checked score."""

    def make_checked(inputs: ScoreInputs, rows: Sequence[Tokens]) -> Score:
        found = called(f"the score {name}", make, inputs, rows)
        if not all(hasattr(found, part) for part in ("model", "ask", "read")):
            raise UserError(
                f"what makes the score {name} makes none", got=type(found).__name__, want="a scores.score.Score"
            )
        return OwnScore(name, found)

    return make_checked


SCORES: Final = Registry[MakeScore](
    "score",
    "iconoclast_tl.scores",
    {"log-odds": _log_odds, "logit": _logit, "projection": _projection},
    adapt=own_score,
)
Function = TypeVar("Function", bound=Callable[..., Any])


def score(name: str) -> Callable[[Function], Function]:
    """A decorator that makes a function or class a maker of scores by this name, for `attribution.score`.

        @itl.score("certainty")
        class Certainty:
            def __init__(self, inputs, rows): ...   # `ScoreInputs`, and the prompts as rows of tokens
            def ask(self, prompts): ...             # numbers of prompts → `ScoreBatch`
            def read(self, asked, candidates=1): ...  # → a score of (candidate, prompt), with its gradient

    It is called once for the target prompts and once for their matched neutral ones, and has `model`, `ask` and `read`
    as `scores.score.Score` says; `scores.projection` is the shortest example. Direct attribution is along the
    direction. Raises `UserError` for a name that is taken; when it is used, for what is wrong with what it returns.
    """

    def decorate(make: Function) -> Function:
        SCORES.add(name, own_score(name, make), make)
        return make

    return decorate
