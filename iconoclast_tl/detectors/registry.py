"""Detectors by the names that settings give them: those of this package, and those that users bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from iconoclast_tl.detectors.config import DetectorConfig
from iconoclast_tl.detectors.detector import Detector
from iconoclast_tl.detectors.markers.detector import MarkerDetector
from iconoclast_tl.detectors.markers.markers import marker_set, marker_set_names
from iconoclast_tl.detectors.own import own_detector, require_classes
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.registry import Registry, UnknownPartError

MakeDetector = Callable[[DetectorConfig], Detector]
"""Makes a detector from settings; raises `UserError` for all that is wrong with them, as far as it can be told."""
OF_A_SET: Final = "markers:"


def _markers(config: DetectorConfig) -> Detector:
    return MarkerDetector(marker_set(config.markers, config.match), "markers")


def _classifier(config: DetectorConfig) -> Detector:
    from iconoclast_tl.detectors.classifier import ClassifierDetector

    classifier = ClassifierDetector(config.classifier)
    classifier.check()
    return classifier


def _nli(config: DetectorConfig) -> Detector:
    from iconoclast_tl.detectors.nli import NliDetector

    nli = NliDetector(config.nli)
    nli.check()
    return nli


def _judge(config: DetectorConfig) -> Detector:
    from iconoclast_tl.detectors.judge.detector import JudgeDetector

    judge = JudgeDetector(config.judge)
    judge.check()
    return judge


def _as_maker(name: str, found: Any) -> MakeDetector:
    """What an entry point names: a function of responses, or a class of detectors."""
    if not callable(found):
        want = "a function of responses, or a class of detectors"
        raise UserError(f"the entry point {name} is no detector", got=type(found).__name__, want=want)
    return lambda config: own_detector(name, found)


DETECTORS: Final = Registry[MakeDetector](
    "detector",
    "iconoclast_tl.detectors",
    {"markers": _markers, "classifier": _classifier, "nli": _nli, "judge": _judge},
    adapt=_as_maker,
)
Source = TypeVar("Source", bound=Callable[..., Any])


def detector(
    name: str, *, classes: Mapping[str, bool] | None = None, reads_prompts: bool = False
) -> Callable[[Source], Source]:
    """A decorator that makes a function or a class a detector by this name, in every setting and option that takes one.

        @itl.detector("short")
        def short(exchanges):
            return [len(one.response.split()) < 5 for one in exchanges]

    A function is given all responses at once (`Exchange`: `response`, and `prompt` where `reads_prompts`), none of them
    blank, and returns for each whether it shows the behaviour, or a `Label`. classes: class → whether it shows the
    behaviour, of labels by other names than `shown` and `not shown`. A class is made without arguments and has what
    `detectors.detector.Detector` has.

    Labels depend on the file that it stands in: an evaluation asks again where that has changed. Raises `UserError` for
    a name that is taken. When it is asked, one that raises an error, or returns anything else, is told in one line.
    """
    require_classes(name, classes)

    def decorate(source: Source) -> Source:
        DETECTORS.add(name, lambda config: own_detector(name, source, classes, reads_prompts), source)
        return source

    return decorate


def make_detector(config: DetectorConfig, name: str) -> Detector:
    """The detector that settings call `name`; its model or endpoint is not reached yet.

    Raises `UserError` for an unknown name, and for all that can be told to be wrong with its settings without that.
    """
    if name.startswith(OF_A_SET):
        return MarkerDetector(marker_set(name.removeprefix(OF_A_SET)), name)
    if name not in DETECTORS:
        sets = f"{DETECTORS.listed()}, or {OF_A_SET}SET with one of {', '.join(marker_set_names())}"
        raise UnknownPartError("detector", name, sets)
    return DETECTORS[name](config)


def search_detector(config: DetectorConfig) -> Detector:
    """The detector of searches and previews: it takes the likeliest class, however unsure, since each must have one."""
    sure = {name: getattr(config, name).model_copy(update={"min_confidence": 0.0}) for name in ("classifier", "nli")}
    return make_detector(config.model_copy(update=sure), config.detector)


def detector_names(config: DetectorConfig) -> tuple[str, ...]:
    """All detectors that settings name, the one that the rates stand on first."""
    return tuple(dict.fromkeys((config.detector, *config.detectors)))


def require_detectors(config: DetectorConfig) -> None:
    """Raise `UserError` where the settings name a detector that does not exist or could not work."""
    for name in detector_names(config):
        make_detector(config, name).close()
