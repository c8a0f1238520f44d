"""The job that every search method gets, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from iconoclast_tl.architecture.hook_points import HookedModule
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.foundation.drawing import Drawn
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Say, Track, silent, unheard
from iconoclast_tl.scores.config import ScoreConfig
from iconoclast_tl.scores.first_tokens import FirstTokens, first_tokens
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.families import Source
from iconoclast_tl.search.objective import Goal, KlKind, Objective
from iconoclast_tl.search.pareto import Candidate, choose, pareto_front, take
from iconoclast_tl.search.proxy import Proxy
from iconoclast_tl.search.warm_start import WarmStart

BEGINNINGS = 4
"""Beginnings of responses that a user is told."""
UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for a token that is only a part of a character."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a search needs."""

    sites: Mapping[Site, HookedModule]
    train: Baseline
    """The base on the train prompts, which a gradient sees."""
    val: Baseline
    """The base on the val prompts, on which every candidate is confirmed."""
    source: Source
    config: SearchConfig
    scores: ScoreConfig
    seed: int
    journal: Path
    """The file in which a study keeps its trials."""
    trace: Path
    """The file in which a gradient search keeps its points."""
    affine: tuple[bool, ...] = (False, True)
    """The kinds of edit that are searched: plain, affine or both."""
    track: Track = silent
    say: Say = unheard
    warm_start: WarmStart | None = None
    """Where a search over kernels starts; None: at random."""

    @cached_property
    def objective(self) -> Objective:
        """Made on first use: a search that is complete does not run the model."""
        require_open(self.val, "val", self.config.goal)
        return Objective(self.val, self.sites)

    def new_proxy(self, tokens: Int[Tensor, "t"] | None) -> Proxy:
        """A proxy that knows the base's responses and nothing else. tokens: the first tokens that it scores."""
        require_open(self.train, "train", self.config.goal)
        return Proxy(self.train, self.sites, self.scores.temperature, tokens)

    def first_tokens(self) -> FirstTokens | None:
        """The tokens that the proxy scores, and says which; None where it scores whole beginnings of responses.

        Raises `UserError` where first tokens are to be scored and there are none.
        """
        if self.config.gradient.objective == "sequence":
            return None
        tokens = first_tokens(self.train, self.scores.tokens)
        if not len(tokens.ids):
            raise UserError(
                "no first token is likelier on target prompts than on neutral ones",
                mend="use search.gradient.objective=sequence, or name them in scores.tokens",
            )
        words = " ".join(repr(word) for word in tokens.words if UNDECODABLE not in word)
        self.say(f"the behaviour is scored by the first token of a response: {words} (AUROC {tokens.auroc:.2f})")
        if tokens.auroc < 0.6:
            self.say("warning: the first token of a response hardly tells target from neutral prompts")
        return tokens

    def say_how_it_begins(self, proxy: Proxy) -> None:
        """Say how many train prompts show the behaviour, and by which beginnings of responses it is known."""
        shows = self.train.shows["target"]
        decode = self.train.model.tokenizer.decode
        texts = [(decode(list(prefix)).strip(), n) for prefix, n in proxy.prefixes.common(BEGINNINGS)]
        known = ", ".join(f'"{text}" ({n})' for text, n in texts if text and UNDECODABLE not in text)
        self.say(f"{sum(shows)} of {len(shows)} train prompts show the behaviour; their responses begin {known}")

    def found(self, candidates: Sequence[Candidate], about: Mapping[str, Any]) -> Found:
        """What this search found: candidates that were generated from on val, and what results.json says of them."""
        return Found(candidates=list(candidates), about=dict(about), config=self.config, source=self.source)


@dataclass(frozen=True, kw_only=True, repr=False)
class Found(Drawn):
    """What a search found: candidates with their scores on val, and the one that the settings choose."""

    candidates: list[Candidate]
    """Confirmed by generation on val."""
    about: dict[str, Any]
    """The search in words and numbers, for results.json: the method, and what is proxy and what was generated."""
    config: SearchConfig
    source: Source = field(compare=False)
    """Builds the candidates' edits."""

    @cached_property
    def chosen(self) -> Candidate:
        """The candidate that `search.take` names, or `search.choose` prefers; `UserError` where there is none."""
        config = self.config
        if config.take is not None:
            return take(self.candidates, config.take)
        return choose(self.candidates, config.choose, config.max_rate, config.kl, config.goal)

    @cached_property
    def edit(self) -> Edit:
        """The chosen candidate's edit."""
        return self.edit_of(self.chosen)

    def edit_of(self, candidate: Candidate) -> Edit:
        """The edit of any candidate, such as one of `front()`."""
        return self.source.build(candidate.spec)

    def front(self, kl: KlKind | None = None) -> list[Candidate]:
        """The Pareto front of behaviour rate and KL, by rising rate. kl: which KL; by default the search's."""
        return pareto_front(self.candidates, kl or self.config.kl, self.config.goal)

    def __repr__(self) -> str:
        """Such as `Found(7 candidates by gradient, chosen point 3: behaviour 0.01, spill 0.00, KL 0.00067)`."""
        scores = self.chosen.scores
        said = (
            f"behaviour {scores.behaviour_rate:.2f}, spill {scores.spill_rate:.2f}, KL {scores.kl(self.config.kl):.2g}"
        )
        source = source_of(self.chosen.number, self.config)
        return f"Found({len(self.candidates)} candidates by {self.config.method}, chosen {source}: {said})"


def source_of(number: int, config: SearchConfig) -> str:
    """What made a candidate: a trial of a study, or a point of a gradient's trace."""
    return f"{'point' if config.method == 'gradient' else 'trial'} {number}"


def require_open(base: Baseline, split: str, goal: Goal) -> None:
    """Raise `UserError` where the base shows the behaviour never, or always and it is to be strengthened."""
    base.require_shown(split)
    shows = base.shows["target"]
    if goal == "strengthen" and all(shows):
        raise UserError(
            "the model always shows the behaviour",
            got=f"{len(shows)} of {len(shows)} {split} target prompts",
            want="some at which it does not, to strengthen it there",
            mend="give other --target prompts, or pass --goal suppress",
        )
