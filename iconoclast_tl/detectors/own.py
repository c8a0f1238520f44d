"""Detectors that users bring: functions and classes, with one line for whatever is wrong with what they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iconoclast_tl.detectors.detector import (
    EMPTY,
    UNCERTAIN,
    UNLABELLED,
    Detector,
    Exchange,
    Footprint,
    Label,
)
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.foundation.registry import called, source_digest

SHOWN, ABSENT = "shown", "not shown"
OF_ALL = {EMPTY, UNCERTAIN, UNLABELLED}
"""Classes that every detector has."""


class FunctionDetector:
    """A function from responses to truth values or labels, as a detector."""

    reads_prompts = False

    def __init__(
        self, name: str, function: Callable[..., Any], classes: Mapping[str, bool], reads_prompts: bool = False
    ) -> None:
        self._name, self._function, self._classes = name, function, dict(classes)
        self.reads_prompts = reads_prompts

    @property
    def name(self) -> str:
        """As it was registered."""
        return self._name

    @property
    def classes(self) -> Mapping[str, bool]:
        """`shown` and `not shown`, or those that were registered."""
        return self._classes

    @property
    def remarks(self) -> Mapping[str, Any]:
        """None."""
        return {}

    def about(self) -> dict[str, Any]:
        """What `OwnDetector` adds says all."""
        return {"classes": self._classes, "reads_prompts": self.reads_prompts}

    def label(self, exchanges: Sequence[Exchange], track: Track = silent) -> list[Any]:
        """What the function returns, truth values as labels."""
        return [self._label(one) for one in self._function(exchanges)]

    def settled(self, beginning: str) -> bool:
        """Never: what a function makes of the whole is known when the whole is there."""
        return False

    def footprint(self) -> Footprint | None:
        """None that is known."""
        return None

    def close(self) -> None:
        """Nothing is held."""

    def _label(self, found: Any) -> Any:
        if isinstance(found, Label) or str(found) not in ("True", "False"):  # numpy and torch have bools of their own
            return found
        shows = bool(found)
        return Label(next(name for name, shown in self._classes.items() if shown == shows), shows, None)


class OwnDetector:
    """A detector of the user's, asked under its registered name, and with what it returns checked."""

    def __init__(self, name: str, inner: Detector, source: Any) -> None:
        """source: the function or class, whose code its labels depend on."""
        self._name, self._inner, self._source = name, inner, source

    @property
    def name(self) -> str:
        """As it was registered, whatever it calls itself."""
        return self._name

    @property
    def classes(self) -> Mapping[str, bool]:
        """Its own."""
        return self._inner.classes

    @property
    def reads_prompts(self) -> bool:
        """Whether it must be shown the prompt, too."""
        return self._inner.reads_prompts

    @property
    def remarks(self) -> Mapping[str, Any]:
        """Its own."""
        return self._inner.remarks

    def about(self) -> dict[str, Any]:
        """Name, module and digest of its code, and what it says of itself: labels by other code are asked for again."""
        module = str(getattr(self._source, "__module__", ""))
        about = called(self._what, self._inner.about)
        return {**about, "kind": "own", "name": self._name, "module": module, "digest": source_digest(self._source)}

    def label(self, exchanges: Sequence[Exchange], track: Track = silent) -> list[Label]:
        """One label for every exchange, in order; `UserError` where it raises an error, or returns anything else."""
        labels = called(self._what, lambda: list(self._inner.label(exchanges, track)))
        if len(labels) != len(exchanges):
            raise UserError(f"{self._what} returns another number of labels", got=len(labels), want=len(exchanges))
        known = {**self.classes, **dict.fromkeys(OF_ALL)}
        for one in labels:
            if not isinstance(one, Label):
                raise UserError(f"{self._what} returns what is no label", got=repr(one), want="True, False or a Label")
            if one.name not in known:
                raise UserError(f"{self._what} returns an unknown class", got=repr(one.name), want=", ".join(known))
        return labels

    def settled(self, beginning: str) -> bool:
        """What it says itself."""
        return bool(called(self._what, self._inner.settled, beginning))

    def footprint(self) -> Footprint | None:
        """What it says itself."""
        return called(self._what, self._inner.footprint)

    def close(self) -> None:
        """Free what it holds."""
        called(self._what, self._inner.close)

    @property
    def _what(self) -> str:
        return f"the detector {self._name}"


def own_detector(
    name: str, source: Any, classes: Mapping[str, bool] | None = None, reads_prompts: bool = False
) -> Detector:
    """The detector that a user's function or class means; `UserError` where a class makes none."""
    if not isinstance(source, type):
        named = {SHOWN: True, ABSENT: False} if classes is None else classes
        return OwnDetector(name, FunctionDetector(name, source, named, reads_prompts), source)
    made = called(f"the detector {name}", source)
    if not isinstance(made, Detector):
        wanted = (member for member in vars(Detector) if not member.startswith("_"))
        missing = [member for member in wanted if not hasattr(made, member)]
        raise UserError(
            f"the class {source.__qualname__} makes no detector",
            got=f"one without {', '.join(missing)}",
            want="what iconoclast_tl.detectors.detector.Detector has",
        )
    return OwnDetector(name, made, source)


def require_classes(name: str, classes: Mapping[str, bool] | None) -> None:
    """Raise `UserError` for classes that cannot stand for yes and no."""
    if classes is not None and (set(classes.values()) != {True, False} or OF_ALL & set(classes)):
        raise UserError(
            f"the classes of the detector {name} do not fit",
            got=dict(classes),
            want=f"one that shows the behaviour and one that does not, and none of {', '.join(sorted(OF_ALL))}",
        )
