"""A search by another detector than markers: all that it goes by is what that detector says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.detectors.classifier import ClassifierDetector
from iconoclast_tl.detectors.config import ClassifierConfig
from iconoclast_tl.detectors.detector import Exchange
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.evaluation.suite import Questions
from iconoclast_tl.execution.generation import Response, generate
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.organisms.folder import CONTRAST_FOLDER, shipped_folder
from iconoclast_tl.organisms.grammar import grade
from iconoclast_tl.scores.prefixes import known_prefixes
from iconoclast_tl.stages.collection import collected
from iconoclast_tl.stages.directions import estimated
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.search import searched
from iconoclast_tl.stages.settings import merge, parse_assignments
from iconoclast_tl.stages.workspace import Workspace
from tests.detectors.trained import LABELS, TEMPLATE, classifier_folder

pytestmark = pytest.mark.slow
SMALL = [
    "search.gradient.prompts=6", "scores.prompts=6", "search.gradient.steps=3",
    "search.gradient.prices=[0.01, 0.001, 2]",
    "search.gradient.survivors=1", "search.gradient.refine_steps=2",
    "evaluation.max_new_tokens=24", "evaluation.kl_tokens=8", "evaluation.batch_size=16",
    'evaluation.markers=["never said"]',
]  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the shipped organism on a few of its prompts; the markers find nothing, the classifier reads prompts, too."""
    own = shipped_folder() / CONTRAST_FOLDER
    prompts = {side: f"{own / f'{side}_train.jsonl'}@train[:20]" for side in ("target", "neutral")}
    named = {"name": str(classifier_folder(tmp_path_factory)), "labels": LABELS, "template": TEMPLATE, "device": "cpu"}
    classifier = {"detector": "classifier", "classifier": named}
    return merge(parse_assignments(SMALL), {"prompts": prompts, "evaluation": classifier})


def labelled(settings: dict[str, Any], asked: Sequence[tuple[str, str]]) -> list[bool]:
    """What a classifier of its own says of (prompt, response)."""
    detector = ClassifierDetector(ClassifierConfig(**settings["evaluation"]["classifier"]))
    return [label.shows is True for label in detector.label([Exchange(said, prompt) for prompt, said in asked])]


def pairs(questions: Questions, said: Sequence[Response]) -> list[tuple[str, str]]:
    return [(prompt.text, one.text) for prompt, one in zip(questions.prompts, said, strict=True)]


def search_all(workspace: Workspace) -> Any:
    activations = collected(workspace)
    return searched(workspace, estimated(workspace, activations), activations)


def test_labels_of_the_base_of_its_paths_and_of_the_search_are_the_classifiers(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    with open_workspace(settings, None, tmp_path / "run") as workspace:
        val, train = workspace.val, workspace.asked("train")
        for name, questions in val.suite.items():
            said = pairs(questions, val.responses[name])
            assert val.shows[name] == labelled(settings, said)
            assert val.shows[name] == [grade(*one) == "refused" for one in said]
        assert (all(val.shows["target"]), any(val.shows["neutral"])) == (True, False)

        decode, found = workspace.model.tokenizer.decode, 0
        for prompt, ways in zip(train.suite["target"].prompts, known_prefixes(train).to_json()["opening"], strict=True):
            for way in ways:
                texts = [decode(way[:length], skip_special_tokens=True) for length in (len(way), len(way) - 1)]
                asked = [(prompt.text, text) for text in texts if text]
                assert labelled(settings, asked) == [True, False][: len(asked)]
                found += 1
        assert found == len(train.suite["target"].prompts)

        edit = search_all(workspace)
        chosen = workspace.folder.read_state()["chosen"]
        with preview(edit, workspace.sites):
            said = generate(workspace.model, val.suite["target"].rows, 24, 16)
        shows = labelled(settings, pairs(val.suite["target"], said))
        point = next(one for one in workspace.folder.read_state()["pareto"] if one["source"] == chosen["source"])
        assert point["behaviour_rate"] == sum(shows) / len(shows)


def test_the_same_search_by_markers_that_find_nothing_has_nothing_to_search_for(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    markers = merge(settings, {"evaluation": {"detector": "markers"}})
    with (
        pytest.raises(UserError, match="never shows the behaviour"),
        open_workspace(markers, None, tmp_path / "run") as workspace,
    ):
        search_all(workspace)
