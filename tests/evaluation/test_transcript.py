"""responses.jsonl: what is read is what was written, and a budget leaves of a response what its tokens made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iconoclast_tl.detectors.detector import NO_LABEL
from iconoclast_tl.evaluation.transcript import read_transcript, token_ends, with_labels, write_transcript
from iconoclast_tl.foundation.errors import UserError
from tests.evaluation.transcripts import NO, UNSURE, YES, row, said


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    rows = [
        row("target", 0, said("a b", YES, NO, grade="refused"), said("", NO, NO_LABEL, grade="broken"), "tea"),
        row("neutral", 0, said("c", UNSURE, YES, grade="answered"), said("d", NO, NO, grade="answered")),
    ]
    file = tmp_path / "responses.jsonl"
    write_transcript(file, rows, "a", keep_prompts=True)
    assert read_transcript(file) == rows
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    # What cannot be said is null, not false.
    assert [line[model]["behaviour"] for line in lines for model in ("base", "edited")] == [True, False, None, False]
    write_transcript(file, rows, "none of them", keep_prompts=False)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["base"]["behaviour"] for line in lines] == [None, None]
    assert [one.prompt for one in read_transcript(file)] == [None, None]


@pytest.mark.parametrize("content", ["", '{"set": "target", "id": "0", "category": null}\n'])
def test_a_file_without_responses_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "responses.jsonl").write_text(content)
    with pytest.raises(UserError, match="holds no responses: evaluate the run first"):
        read_transcript(tmp_path / "responses.jsonl")


def test_a_budget_leaves_what_its_tokens_made() -> None:
    one = said("ab cd ef")
    assert [one.within(budget) for budget in (1, 2, 3, 9)] == ["ab", "ab cd", "ab cd ef", "ab cd ef"]


def test_a_detector_is_shown_the_prompt_with_the_response() -> None:
    one = row("target", 4, said("ab cd"), said("ef gh"))
    assert (one.exchange("edited").response, one.exchange("edited").prompt) == ("ef gh", "prompt 4")
    assert (one.exchange("base", 1).response, one.exchange("base", 1).prompt) == ("ab", "prompt 4")


def test_labels_of_another_detector_stand_beside_those_that_are_there() -> None:
    (found,) = with_labels([row("target", 0, said("x", YES), said("y", NO))], "z", {"base": [NO], "edited": [YES]})
    assert found.said["base"].labels == {"a": YES, "z": NO}
    assert found.said["edited"].labels == {"a": NO, "z": YES}


def test_a_token_ends_where_text_and_beginning_part() -> None:
    """Half a character decodes to a mark; and a beginning may go beyond the text, whose end was stripped."""
    assert token_ends(["\ufffd", "é", "é t\ufffd", "é tö", "é tö \ufffd"], "é tö") == (0, 1, 3, 4, 4)
    assert token_ends(["a", "a b\ufffd"], "a b") == (1, 3)
    assert token_ends(["", "x"], "") == (0, 0)


@given(text=st.text(max_size=8), beginning=st.text(max_size=8))
def test_a_beginning_has_with_the_text_in_common_what_a_scan_finds(text: str, beginning: str) -> None:
    length = max(n for n in range(len(text) + 1) if beginning[:n] == text[:n])
    assert token_ends([beginning], text) == (length,)
