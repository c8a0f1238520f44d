"""Detectors by name: what settings say reaches them, and a mistake is told before anything is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iconoclast_tl.detectors import registry
from iconoclast_tl.detectors.config import DetectorConfig
from iconoclast_tl.detectors.detector import Detector, Exchange, Label, label_all
from iconoclast_tl.detectors.markers.markers import marker_set
from iconoclast_tl.detectors.registry import detector_names, make_detector, require_detectors, search_detector
from iconoclast_tl.foundation.errors import UserError
from tests.detectors.trained import LABELS, NLI_LABELS, bert, save_tokenizer
from tests.plugins import own_registries


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of random weights that knows nothing of entailment."""
    place = tmp_path_factory.mktemp("registry")
    bert(len(save_tokenizer(place)), list(LABELS)).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def entailing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that says entailment."""
    place = tmp_path_factory.mktemp("entailing")
    bert(len(save_tokenizer(place)), NLI_LABELS).save_pretrained(place)
    return place


def shows(detector: Detector, response: str) -> bool | None:
    (label,) = detector.label([Exchange(response)])
    return label.shows


def test_markers_count_where_the_settings_say() -> None:
    config = DetectorConfig(markers=("not that",))
    assert shows(make_detector(config, "markers"), "well, not that") is True
    prefix = config.model_copy(update={"match": "prefix"})
    assert shows(make_detector(prefix, "markers"), "well, not that") is False
    assert shows(make_detector(prefix, "markers"), "not that") is True


def test_a_named_set_is_a_detector_of_that_name_whatever_the_markers_are() -> None:
    config = DetectorConfig(markers=("not that",), match="prefix")
    detector = make_detector(config, "markers:disclaimers")
    assert detector.name == "markers:disclaimers"
    phrase = marker_set("disclaimers").phrases[0]
    assert shows(detector, f"well, {phrase}") is True
    assert shows(detector, "not that") is False


def test_the_primary_detector_comes_first_and_nobody_twice() -> None:
    config = DetectorConfig(detector="nli", detectors=("markers", "nli", "markers:refusal", "markers"))
    assert detector_names(config) == ("nli", "markers", "markers:refusal")


def test_detectors_with_models_are_made_under_their_names(folder: Path, entailing: Path) -> None:
    config = DetectorConfig(
        classifier={"name": str(folder), "labels": LABELS, "device": "cpu"},
        nli={"name": str(entailing), "device": "cpu"},
        detectors=("classifier", "nli"),
    )
    assert [make_detector(config, name).name for name in ("classifier", "nli")] == ["classifier", "nli"]
    require_detectors(config)


@pytest.mark.parametrize("place", ["detector", "detectors"])
@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("classifier", {"labels": {"Refusal": True}}, "a label of the classifier .* is not named"),
        ("nli", {}, "entailment"),
        ("judge", {}, "judge.model"),
    ],
)
def test_a_mistake_is_told_when_a_detector_is_made(
    folder: Path, place: str, name: str, wrong: dict[str, Any], told: str
) -> None:
    """Before weights are read or an endpoint is reached, whichever detector it is."""
    named = {} if name == "judge" else {"name": str(folder), "device": "cpu"}
    config = DetectorConfig(**{place: name if place == "detector" else (name,), name: {**named, **wrong}})
    with pytest.raises(UserError, match=told):
        require_detectors(config)


# A user's own ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[None]:
    """What is registered in a test is gone after it."""
    with own_registries():
        yield


def short(exchanges: Sequence[Exchange]) -> list[bool]:
    return [len(one.response.split()) < 3 for one in exchanges]


class Loud:
    """All that a detector has, by hand."""

    name, remarks, reads_prompts = "something else", {"heard": 1}, False
    classes: Mapping[str, bool] = {"loud": True, "quiet": False}

    def about(self) -> dict[str, Any]:
        return {"from": 2}

    def label(self, exchanges: Sequence[Exchange], track: Any = None) -> list[Label]:
        return [Label("loud" if one.response.isupper() else "quiet", one.response.isupper(), 0.5) for one in exchanges]

    def settled(self, beginning: str) -> bool:
        return len(beginning) > 9

    def footprint(self) -> None:
        return None

    def close(self) -> None:
        return None


@pytest.mark.usefixtures("own")
def test_a_function_is_a_detector_by_its_name() -> None:
    assert registry.detector("short")(short) is short
    found = make_detector(DetectorConfig(detector="short"), "short")
    assert isinstance(found, Detector)
    said = [Exchange("yes"), Exchange("that is a long answer"), Exchange("  ")]
    assert [label.shows for label in label_all(found, said)] == [True, False, False]
    assert [label.name for label in label_all(found, said)] == ["shown", "not shown", "empty"]
    assert search_detector(DetectorConfig(detector="short")).name == "short"
    assert not found.settled("yes")
    about = found.about()
    assert (about["kind"], about["name"], about["module"]) == ("own", "short", "tests.detectors.test_registry")
    assert about["digest"] == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    with pytest.raises(UserError, match="the detector name 'markers' is taken"):
        registry.detector("markers")(short)


@pytest.mark.usefixtures("own")
def test_a_function_may_read_prompts_and_have_classes_of_its_own() -> None:
    @registry.detector("echo", classes={"echo": True, "answer": False}, reads_prompts=True)
    def echo(exchanges: Sequence[Exchange]) -> list[Any]:
        return [
            Label("uncertain", None, 0.5) if one.response == "?" else np.bool_(one.prompt == one.response)
            for one in exchanges
        ]

    found = make_detector(DetectorConfig(), "echo")
    labels = label_all(found, [Exchange("a", "a"), Exchange("a", "b"), Exchange("?", "c")])
    assert [label.name for label in labels] == ["echo", "answer", "uncertain"]
    registry.detector("deaf")(lambda exchanges: [one.prompt is not None for one in exchanges])
    assert [one.shows for one in label_all(make_detector(DetectorConfig(), "deaf"), [Exchange("a", "a")])] == [False]


@pytest.mark.usefixtures("own")
def test_a_class_is_a_detector_under_the_name_it_was_registered_by() -> None:
    registry.detector("loud")(Loud)
    found = make_detector(DetectorConfig(), "loud")
    assert [label.name for label in found.label([Exchange("NO"), Exchange("no")])] == ["loud", "quiet"]
    assert (found.name, found.remarks, found.settled("a" * 10)) == ("loud", {"heard": 1}, True)
    assert found.about().items() >= {"kind": "own", "name": "loud", "from": 2}.items()

    class Half:
        name = "half"

    registry.detector("half")(Half)
    with pytest.raises(UserError, match=r"Half makes no detector: got one without classes, .*; want"):
        make_detector(DetectorConfig(), "half")


WRONG: dict[str, tuple[Any, str]] = {
    "raises": (lambda exchanges: exchanges[7], "raises an error: got IndexError: .*test_registry.py, line"),
    "few": (lambda exchanges: [True], "returns another number of labels: got 1; want 2"),
    "words": (lambda exchanges: ["yes"] * 2, "returns what is no label: got 'yes'; want True, False or a Label"),
    "class": (lambda exchanges: [Label("odd", True, 1.0)] * 2, "returns an unknown class: got 'odd'; want shown, not"),
    "nothing": (lambda exchanges: None, "raises an error: got TypeError"),
}


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_users_detector_is_one_line_that_names_it(name: str) -> None:
    function, told = WRONG[name]
    registry.detector(name)(function)
    with pytest.raises(UserError, match=f"the detector {name} {told}") as error:
        make_detector(DetectorConfig(), name).label([Exchange("a"), Exchange("b")])
    assert "\n" not in str(error.value)


def test_classes_must_say_yes_and_no() -> None:
    for classes in ({"yes": True}, {"yes": True, "empty": False}):
        with pytest.raises(UserError, match="the classes of the detector odd do not fit"):
            registry.detector("odd", classes=classes)


@pytest.mark.usefixtures("own")
def test_an_unknown_detector_lists_those_there_are() -> None:
    registry.detector("short")(short)
    with pytest.raises(UserError, match="no detector 'magic': want one of classifier, judge, markers, nli, short, or"):
        make_detector(DetectorConfig(), "magic")
