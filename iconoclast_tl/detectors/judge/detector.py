"""The judge as a detector: ask, read, remember; what cannot be had is `unlabelled`, counted, and never guessed.

An exchange costs at most `retries` + 1 requests, whether those fail on the way or come back with nonsense. An answer
that cannot be read is asked for again with a reminder and another seed. When as many exchanges in a row as there are
requests at once (at least three) fail on the way after all their retries, the endpoint is taken to be down: the rest is
not asked, and the next set of responses is given up at its first failure until something is answered again.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from iconoclast_tl.detectors.config import JudgeConfig
from iconoclast_tl.detectors.detector import NO_LABEL, Exchange, Footprint, Label
from iconoclast_tl.detectors.judge.cache import ReplyCache, check_place, default_place, key_of
from iconoclast_tl.detectors.judge.crew import as_answered
from iconoclast_tl.detectors.judge.endpoint import SEED, TEMPERATURE, Answer, Endpoint, LostError
from iconoclast_tl.detectors.judge.replies import Judgement, parse_reply
from iconoclast_tl.detectors.judge.rubric import Messages, load_rubric
from iconoclast_tl.foundation.progress import Track, silent

if TYPE_CHECKING:
    import openai

log = logging.getLogger(__name__)
LEAST_IN_A_ROW: Final = 3
NOT_ASKED: Final = "not asked, the endpoint was down"


@dataclass(frozen=True)
class Question:
    """A chat to send, and the digest under which its answer is kept."""

    messages: Messages
    key: str


@dataclass(frozen=True)
class JudgeOutcome:
    """A judgement, or the reason why there is none."""

    verdict: Judgement | None
    reason: str | None = None
    said: str | None = None


class JudgeDetector:
    """A chat model that sorts responses by a rubric. Raises `UserError` for an invalid rubric."""

    name = "judge"

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._rubric = load_rubric(config.rubric)
        self._endpoint = Endpoint(config)
        self._place = (config.cache or default_place()).expanduser()
        self._cache: ReplyCache | None = None
        self._row = _Row(max(LEAST_IN_A_ROW, config.concurrency))
        self._trouble: Counter[str] = Counter()

    @property
    def classes(self) -> Mapping[str, bool]:
        """The rubric's classes, and whether each counts as the behaviour."""
        return self._rubric.classes

    @property
    def reads_prompts(self) -> bool:
        """Whether the rubric has a place for the prompt."""
        return self._rubric.reads_prompts

    @property
    def trouble(self) -> Mapping[str, int]:
        """Why how many responses have got no label so far."""
        return dict(self._trouble)

    @property
    def notes(self) -> tuple[str, ...]:
        """What else a reader of the labels should know: parameters that the endpoint did not take."""
        return self._endpoint.notes

    @property
    def remarks(self) -> Mapping[str, Any]:
        """Why how many responses have no label, and parameters that the endpoint did not take."""
        return {"unlabelled": self.trouble, "not_taken": list(self.notes)}

    def about(self) -> dict[str, Any]:
        """All that the labels depend on, as asked for; `notes` says what the endpoint did not take."""
        config = self._config
        return {
            "base_url": config.base_url,
            "model": config.model,
            "rubric": self._rubric.name,
            "rubric_digest": self._rubric.digest,
            "temperature": TEMPERATURE,
            "seed": SEED,
            "max_tokens": config.max_tokens,
            "confidence": "as stated by the judge",
        }

    def check(self) -> None:
        """`UserError` for whatever is wrong with the settings and can be seen without the network; writes nothing."""
        self._endpoint.check()
        check_place(self._place)

    def label(self, exchanges: Sequence[Exchange], track: Track = silent) -> list[Label]:
        """One label for every exchange, in order; from the cache where it was answered before.

        Raises `UserError` for settings that cannot work, a key or a model that the endpoint does not know, a rubric
        that needs prompts where there are none, and a cache that cannot be used.
        """
        self.check()
        questions = [self._question(exchange) for exchange in exchanges]
        cache = self._cache = self._cache or ReplyCache(self._place)
        outcomes = [self._remembered(cache, question) for question in questions]
        missing = [index for index, outcome in enumerate(outcomes) if outcome is None]
        if missing:
            for at, outcome in self._asked(cache, [questions[index] for index in missing], track).items():
                outcomes[missing[at]] = outcome
        found = [outcome or JudgeOutcome(None, NOT_ASKED) for outcome in outcomes]
        self._report(found)
        return [self._label(outcome.verdict) for outcome in found]

    def settled(self, beginning: str) -> bool:
        """Never: a judge is asked about whole responses."""
        return False

    def footprint(self) -> Footprint | None:
        """None: the model is elsewhere."""
        return None

    def close(self) -> None:
        """Close the cache; it is opened again when something is asked."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _question(self, exchange: Exchange) -> Question:
        messages, config = self._rubric.messages(exchange), self._config
        sampling = {"temperature": TEMPERATURE, "seed": SEED, "max_tokens": config.max_tokens}
        return Question(messages, key_of(config.base_url.rstrip("/"), config.model, messages, sampling))

    def _remembered(self, cache: ReplyCache, question: Question) -> JudgeOutcome | None:
        reply = cache.get(question.key)
        verdict = None if reply is None else parse_reply(reply, self.classes)
        return None if verdict is None else JudgeOutcome(verdict)

    def _asked(self, cache: ReplyCache, questions: Sequence[Question], track: Track) -> dict[int, JudgeOutcome]:
        """The outcomes of those questions that were asked before the endpoint was given up."""
        outcomes: dict[int, JudgeOutcome] = {}
        self._row.start()
        with self._endpoint.connect() as client:
            ask = partial(self._judged, client, cache.put)
            with closing(as_answered(ask, questions, self._config.concurrency)) as answers:
                for index, outcome in track(answers, "judge", len(questions)):
                    outcomes[index] = outcome
                    if self._row.is_long:
                        break
        return outcomes

    def _judged(self, client: openai.OpenAI, keep: Callable[[str, str], None], question: Question) -> JudgeOutcome:
        if self._row.is_long:
            return JudgeOutcome(None, NOT_ASKED)
        left, seed, messages = self._config.retries, SEED, question.messages
        while True:
            try:
                answer = self._endpoint.ask(client, messages, seed, left)
            except LostError as lost:
                if lost.transport:
                    self._row.add()
                return JudgeOutcome(None, lost.reason, str(lost))
            self._row.clear()
            verdict = parse_reply(answer.text, self.classes)
            if verdict is not None:
                _keep(keep, question.key, answer.text)
                return JudgeOutcome(verdict)
            left -= answer.requests
            if left < 0:
                return JudgeOutcome(None, self._nonsense(answer))
            seed, messages = seed + 1, self._rubric.reminded(question.messages)

    def _nonsense(self, answer: Answer) -> str:
        if answer.finish == "length":
            return f"cut off after {self._config.max_tokens} tokens (judge.max_tokens)"
        if answer.finish is None and not answer.text:
            return "the answer was no chat completion"
        return "the answer named no class, or several" if answer.text.strip() else "the answer was empty"

    def _label(self, verdict: Judgement | None) -> Label:
        if verdict is None:
            return NO_LABEL
        return Label(verdict.name, self.classes[verdict.name], verdict.confidence)

    def _report(self, outcomes: Sequence[JudgeOutcome]) -> None:
        reasons = Counter(outcome.reason for outcome in outcomes if outcome.reason is not None)
        self._trouble.update(reasons)
        if reasons:
            counts = ", ".join(f"{reason}: {n}" for reason, n in reasons.most_common())
            last = next((outcome.said for outcome in reversed(outcomes) if outcome.said), None)
            log.warning(
                "judge: %d of %d responses are unlabelled (%s)%s",
                reasons.total(),
                len(outcomes),
                counts,
                f"; the last failure: {last}" if last else "",
            )


class _Row:
    """How many exchanges in a row failed on the way."""

    def __init__(self, limit: int) -> None:
        self._limit, self._length, self._lock = limit, 0, threading.Lock()

    @property
    def is_long(self) -> bool:
        return self._length >= self._limit

    def start(self) -> None:
        """An endpoint that was given up gets one more chance, not a whole row of them."""
        with self._lock:
            self._length = min(self._length, self._limit - 1)

    def add(self) -> None:
        with self._lock:
            self._length += 1

    def clear(self) -> None:
        with self._lock:
            self._length = 0


def _keep(keep: Callable[[str, str], None], key: str, reply: str) -> None:
    try:
        keep(key, reply)
    except sqlite3.Error as error:  # a full disk, say: the label is had all the same
        log.warning("judge: an answer could not be kept in the cache (%s)", error)
