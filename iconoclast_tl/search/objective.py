"""Scores of edits on the val split: behaviour rate, spill and divergence, through hooks; no weight is written.

Every search uses this one objective. Several edits run in one batch. A row's generation stops as soon as its
label is decided, and a neutral response that teacher forcing has shown to stay the base's is not generated at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from iconoclast_tl.architecture.hook_points import HookedModule
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.detectors.detector import Exchange, label_all, shown
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import hooked
from iconoclast_tl.edits.updates import edit_updates, stack_updates
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.metrics.compliance import complies
from iconoclast_tl.evaluation.metrics.divergence import BaseContinuations, Moved
from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.execution.generation import Lanes, generate
from iconoclast_tl.execution.resumption import resumes
from iconoclast_tl.prompts.tokens import left_pad
from iconoclast_tl.statistics.rates import rate

KlKind = Literal["sequence", "first_token"]
Goal = Literal["suppress", "strengthen"]
FIRST_LOOK = 32
"""Target prompts after which `confirm` drops edits that are dominated already."""


@dataclass(frozen=True)
class ValScores:
    """What one edit did on the val prompts."""

    behaviour_rate: float
    spill_rate: float
    kl_first_token: float
    kl_sequence: float
    broken_rate: float = 0.0
    """The share of target prompts whose response falls apart: no behaviour, and nothing said (`metrics.compliance`)."""
    n: int = 0
    """Target prompts."""
    n_neutral: int = 0
    """Neutral prompts."""

    def kl(self, kind: KlKind) -> float:
        """The divergence that the search minimises."""
        return self.kl_sequence if kind == "sequence" else self.kl_first_token

    def shortfall(self, goal: Goal) -> float:
        """The share of target prompts at which the goal is missed; what the search minimises beside the divergence.

        A response that fell apart is no answer: it misses either goal.
        """
        return self.behaviour_rate + self.broken_rate if goal == "suppress" else 1 - self.behaviour_rate

    def to_json(self) -> dict[str, float]:
        """As a trial keeps it."""
        return asdict(self)


class Said(NamedTuple):
    """What became of one target prompt."""

    shows: bool
    broken: bool

    def misses(self, goal: Goal) -> bool:
        """Whether the goal is missed there."""
        return not self.shows if goal == "strengthen" else self.shows or self.broken


class OnTrain(NamedTuple):
    """What a search measured of an edit on train prompts."""

    missed: float
    """The share of target prompts at which the goal is missed."""
    kl: float


class Objective:
    """Scores edits on the target and neutral prompts of val."""

    def __init__(self, base: Baseline, sites: Mapping[Site, HookedModule]) -> None:
        """Compare edits at `sites` with the base's responses to val prompts."""
        self._base, self._sites = base, sites
        self._known: dict[str, dict[int, Said]] = {}

    @property
    def base_scores(self) -> ValScores:
        """The unedited model's."""
        base = self._base
        texts = [response.text for response in base.responses["target"]]
        said = [_said(text, shows) for text, shows in zip(texts, base.shows["target"], strict=True)]
        return self._of(said, base.shows["neutral"], 0.0, 0.0)

    def _of(self, said: Sequence[Said], spills: Sequence[bool], first: float, sequence: float) -> ValScores:
        return ValScores(
            behaviour_rate=_share([one.shows for one in said]),
            spill_rate=_share(spills),
            kl_first_token=first,
            kl_sequence=sequence,
            broken_rate=_share([one.broken for one in said]),
            n=len(said),
            n_neutral=len(spills),
        )

    def shortfall(self, edit: Edit, goal: Goal) -> float:
        """`ValScores.shortfall` alone, generated from the target prompts and kept for a later confirmation."""
        with hooked(edit_updates(edit, self._sites), self._sites) as assigned:
            said = self._responses(assigned, [edit], {0: range(self._n_targets)})[0]
        return _share([one.misses(goal) for one in said])

    def __call__(self, edits: Sequence[Edit]) -> list[ValScores]:
        """Preview the edits together and score each."""
        if not edits:
            return []
        continuations, every = self._continuations(edits), range(len(edits))
        with self._previewed(edits) as assigned:
            said = self._responses(assigned, edits, dict.fromkeys(every, range(self._n_targets)))
            moved = continuations.moved(assigned, len(edits), self._base.track)
            spills = self._neutral_labels(assigned, moved)
        divergences = moved.divergences
        return [self._of(said[c], spills[c], divergences[c].first_token, divergences[c].sequence) for c in every]

    def confirm(self, edits: Sequence[Edit], on_train: Sequence[OnTrain], goal: Goal) -> list[ValScores | None]:
        """Score edits; None for one that another beats by responses to target prompts alone.

        An edit is beaten after a first look where it misses the goal on val more often than one of no larger KL on
        train, beyond what chance explains; after the whole split where another is no worse in prompts missed on val, in
        prompts missed on train and in KL on train, and better in one of them. Divergence and spill on val, which take
        longer, are measured of the others only: that a beaten edit may spill less is not looked at.
        """
        left = self._unbeaten(edits, on_train, goal)
        found = dict(zip(left, self([edits[c] for c in left]), strict=True))
        return [found.get(c) for c in range(len(edits))]

    def _unbeaten(self, edits: Sequence[Edit], on_train: Sequence[OnTrain], goal: Goal) -> list[int]:
        n, going = self._n_targets, list(range(len(edits)))
        if len(edits) < 2:
            return going
        missed: list[list[bool]] = [[] for _ in edits]
        looked = min(FIRST_LOOK, n)
        with self._previewed(edits) as assigned:
            for prompts in (range(looked), range(looked, n)):
                for c, found in self._responses(assigned, edits, dict.fromkeys(going, prompts)).items():
                    missed[c] += [one.misses(goal) for one in found]
                going = _undominated(going, missed, [one.kl for one in on_train])
        measured = {c: (sum(missed[c]), *on_train[c]) for c in going}
        return [c for c in going if not any(_beats(other, measured[c]) for other in measured.values())]

    def _previewed(self, edits: Sequence[Edit]) -> AbstractContextManager[BatchCandidates]:
        """Hooks for the edits as candidates of one batch."""
        return hooked(stack_updates([edit_updates(edit, self._sites) for edit in edits]), self._sites)

    def _continuations(self, edits: Sequence[Edit]) -> BaseContinuations:
        """The base's; where several edits leave the first layers alone, without these, which are run once for all."""
        model, found = self._base.model, self._base.continuations
        layer = min((site.layer for edit in edits for site in edit.sites), default=0)
        if len(edits) == 1 or not layer:
            return found
        batch = left_pad(self._base.suite["neutral"].rows[:2], model.pad_id)
        return found.from_layer(layer) if resumes(model, batch, layer) else found

    def _responses(
        self, assigned: BatchCandidates, edits: Sequence[Edit], wanted: Mapping[int, range]
    ) -> dict[int, list[Said]]:
        """Candidate → its target prompts; what is known of an edit is not generated again."""
        known = {c: self._known.setdefault(edits[c].digest(), {}) for c in wanted}
        asked = [(c, prompt) for c, prompts in wanted.items() for prompt in prompts if prompt not in known[c]]
        for (c, prompt), said in zip(asked, self._ask(assigned, "target", asked), strict=True):
            known[c][prompt] = said
        return {c: [known[c][prompt] for prompt in prompts] for c, prompts in wanted.items()}

    def _neutral_labels(self, assigned: BatchCandidates, moved: Moved) -> list[list[bool]]:
        """The base's label where the response stays the base's; generated where it may not."""
        asked = [(c, prompt) for c, prompt in (~moved.unchanged).nonzero().tolist()]
        spills = [list(self._base.shows["neutral"]) for _ in moved.divergences]
        for (c, prompt), said in zip(asked, self._ask(assigned, "neutral", asked), strict=True):
            spills[c][prompt] = said.shows
        return spills

    def _ask(self, assigned: BatchCandidates, name: str, asked: Sequence[tuple[int, int]]) -> list[Said]:
        base = self._base
        responses = generate(
            base.model,
            [base.suite[name].rows[prompt] for _, prompt in asked],
            base.config.max_new_tokens,
            base.config.batch_rows,
            lanes=Lanes(assigned, [c for c, _ in asked]),
            track=base.track,
            description=f"responses to {name} val prompts",
            decided=base.detector.settled,
        )
        prompts = base.suite[name].prompts
        asked_about = [Exchange(r.text, prompts[p].text) for r, (_, p) in zip(responses, asked, strict=True)]
        labels = shown(label_all(base.detector, asked_about))
        return [_said(response.text, shows) for response, shows in zip(responses, labels, strict=True)]

    @property
    def _n_targets(self) -> int:
        return len(self._base.suite["target"].rows)


def _said(text: str, shows: bool) -> Said:
    return Said(shows, not shows and not complies(text, False))


def _share(labels: Sequence[bool]) -> float:
    return sum(labels) / len(labels)


def _undominated(going: Sequence[int], missed: Sequence[Sequence[bool]], kl: Sequence[float]) -> list[int]:
    """Without those whose interval lies above that of one with no larger KL: more prompts would hardly change it."""
    rates = {c: rate(missed[c], 0) for c in going}
    return [c for c in going if not any(kl[o] <= kl[c] and rates[o].high < rates[c].low for o in going)]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether one is no larger in all of its numbers, and less in one of them."""
    return one != other and all(mine <= its for mine, its in zip(one, other, strict=True))
