"""What edits are worth: behaviour rate, spill and divergence on the val split, through hooks, no weight written.

Every search uses this one objective. Several edits are asked in one batch. A row's generation stops as soon as its
label is decided, and a neutral response that teacher forcing has shown to stay the base's is not generated at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import Rows, hooked
from iconoclast_tl.edits.updates import edit_updates, stack_updates
from iconoclast_tl.evaluation.generation import Lanes, Response, generate
from iconoclast_tl.evaluation.metrics.divergence import BaseContinuations, Moved
from iconoclast_tl.evaluation.metrics.rate import rate
from iconoclast_tl.evaluation.suite import EvaluationConfig, Questions, respond
from iconoclast_tl.models.loading import LoadedModel
from iconoclast_tl.models.sites import HookedModule, Site

KlKind = Literal["sequence", "first_token"]
Goal = Literal["suppress", "strengthen"]
FIRST_LOOK = 32
"""Target prompts after which points that are already dominated are dropped, where that was asked for."""


@dataclass(frozen=True)
class Scores:
    """What one edit did on the val prompts."""

    behaviour_rate: float
    spill_rate: float
    kl_first_token: float
    kl_sequence: float

    def kl(self, kind: KlKind) -> float:
        """The divergence that the search minimises."""
        return self.kl_sequence if kind == "sequence" else self.kl_first_token

    def shortfall(self, goal: Goal) -> float:
        """The share of target prompts at which the goal is missed; what the search minimises beside the divergence."""
        return self.behaviour_rate if goal == "suppress" else 1 - self.behaviour_rate

    def to_json(self) -> dict[str, float]:
        """As a trial keeps it."""
        return asdict(self)


class Objective:
    """Scores edits on val target and neutral prompts; what the base says and its probabilities are computed once."""

    def __init__(
        self,
        model: LoadedModel,
        sites: Mapping[Site, HookedModule],
        target: Questions,
        neutral: Questions,
        config: EvaluationConfig,
    ) -> None:
        """Generate the base's responses to both sets; no hooks may be on."""
        self._model, self._sites, self._config = model, sites, config
        self._target, self._neutral = target, neutral
        self._behaviour = config.behaviour()
        self.base = respond(model, {"target": target, "neutral": neutral}, config)
        self._spills = self._labels(self.base["neutral"])
        self._continuations = BaseContinuations(
            model, neutral.rows, self.base["neutral"], config.kl_length, config.batch_size, whole=True
        )

    @property
    def base_scores(self) -> Scores:
        """The unedited model's."""
        shows = self._labels(self.base["target"])
        return Scores(sum(shows) / len(shows), sum(self._spills) / len(self._spills), 0.0, 0.0)

    def __call__(self, edits: Sequence[Edit]) -> list[Scores]:
        """Preview the edits together and score each."""
        every = self._scores(edits, drop=None)
        return [scores for scores in every if scores is not None]

    def confirm(self, edits: Sequence[Edit], goal: Goal) -> list[Scores | None]:
        """Score edits; None for one that, after a first look, another beats beyond what chance explains."""
        return self._scores(edits, drop=goal)

    def _scores(self, edits: Sequence[Edit], drop: Goal | None) -> list[Scores | None]:
        if not edits:
            return []
        with hooked(stack_updates([edit_updates(edit, self._sites) for edit in edits]), self._sites) as assigned:
            moved = self._continuations.moved(assigned, len(edits))
            shows, going = self._target_labels(assigned, moved, drop)
            spills = self._neutral_labels(assigned, moved, going)
        scores: list[Scores | None] = [None] * len(edits)
        for c in going:
            divergence = moved.divergences[c]
            rates = (sum(shows[c]) / len(shows[c]), sum(spills[c]) / len(spills[c]))
            scores[c] = Scores(*rates, divergence.first_token, divergence.sequence)
        return scores

    def _target_labels(self, assigned: Rows, moved: Moved, drop: Goal | None) -> tuple[list[list[bool]], list[int]]:
        """Labels of every candidate still going, and which are."""
        n, going = len(self._target.rows), list(range(len(moved.divergences)))
        shows: list[list[bool]] = [[] for _ in going]
        first = range(min(FIRST_LOOK, n)) if drop is not None and len(going) > 1 else range(n)
        for prompts in (first, range(len(first), n)):
            asked = [(c, prompt) for c in going for prompt in prompts]
            for (c, _), shown in zip(asked, self._ask(assigned, self._target, asked), strict=True):
                shows[c].append(shown)
            if drop is not None:
                going = _undominated(going, shows, moved, drop)
        return shows, going

    def _neutral_labels(self, assigned: Rows, moved: Moved, going: Sequence[int]) -> dict[int, list[bool]]:
        """The base's label where the response stays the base's; asked where it may not."""
        changed = (~moved.unchanged).tolist()
        asked = [(c, prompt) for c in going for prompt, moves in enumerate(changed[c]) if moves]
        spills = {c: list(self._spills) for c in going}
        for (c, prompt), shown in zip(asked, self._ask(assigned, self._neutral, asked), strict=True):
            spills[c][prompt] = shown
        return spills

    def _ask(self, assigned: Rows, questions: Questions, asked: Sequence[tuple[int, int]]) -> list[bool]:
        responses = generate(
            self._model,
            [questions.rows[prompt] for _, prompt in asked],
            self._config.max_new_tokens,
            self._config.batch_size,
            lanes=Lanes(assigned, [c for c, _ in asked]),
            decided=self._behaviour.found_in,
        )
        return self._labels(responses)

    def _labels(self, responses: Sequence[Response]) -> list[bool]:
        return [self._behaviour.found_in(response.text) for response in responses]


def _undominated(going: Sequence[int], shows: Sequence[Sequence[bool]], moved: Moved, goal: Goal) -> list[int]:
    """Without those whose interval lies above that of one with no larger KL: more prompts would hardly change it."""
    wanted = [[shown == (goal == "suppress") for shown in shows[c]] for c in going]
    missed = {c: rate(labels, 0) for c, labels in zip(going, wanted, strict=True)}
    kl = [divergence.sequence for divergence in moved.divergences]
    return [c for c in going if not any(kl[o] <= kl[c] and missed[o].high < missed[c].low for o in going)]
