"""Positions that can be collected are the template's own, and asking for others is the user's line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.activations.positions import described, n_unlike, positions_of
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.prompts.chat import ChatFormat
from iconoclast_tl.prompts.prompt import Prompt
from tests.conftest import make_tokenizer

LONG = "{{ bos_token }} <user> {{ messages[-1]['content'] }} <eos> w1 <assistant>"
NONE = "{{ bos_token }} <user> {{ messages[-1]['content'] }}"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return make_tokenizer(tmp_path)


def chat(tokenizer: Any, template: str, raw: bool = False) -> ChatFormat:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return ChatFormat(tokenizer, raw_prompts=raw)


def test_the_last_so_many_or_all_that_the_template_has(tokenizer: Any) -> None:
    form = chat(tokenizer, LONG)
    assert [positions_of(n, form) for n in (1, 2, 3)] == [(-1,), (-1, -2), (-1, -2, -3)]
    assert positions_of("template", form) == (-1, -2, -3)
    with pytest.raises(UserError, match=r"4 positions.*writes 3 tokens.*'<eos>', 'w1', '<assistant>'.*at most 3"):
        positions_of(4, form)


def test_without_a_tail_there_is_one_position(tokenizer: Any) -> None:
    for form, why in (
        (chat(tokenizer, NONE), "no token after the instruction"),
        (chat(tokenizer, LONG, raw=True), "raw prompts, which have no template"),
    ):
        assert positions_of("template", form) == positions_of(1, form) == (-1,)
        assert described(form) == [{"position": -1, "token_id": None, "text": None}]
        with pytest.raises(UserError, match=f"{why}; want 1"):
            positions_of(2, form)


def test_the_tail_is_described_in_reading_order(tokenizer: Any) -> None:
    rows = described(chat(tokenizer, LONG))
    assert [(row["position"], row["text"]) for row in rows] == [(-3, "<eos>"), (-2, "w1"), (-1, "<assistant>")]
    assert [row["token_id"] for row in rows] == tokenizer.convert_tokens_to_ids(["<eos>", "w1", "<assistant>"])


def test_prompts_that_end_otherwise_are_counted(tokenizer: Any) -> None:
    form = chat(tokenizer, LONG)
    rows = [form.encode(Prompt("w5 w6")), form.encode(Prompt("w7"))]
    assert n_unlike(rows, (-1, -2, -3), form) == 0
    rows[1][-3] = 9
    assert n_unlike(rows, (-1, -2, -3), form) == 1
    assert n_unlike(rows, (-1, -2), form) == n_unlike(rows, (-1,), form) == 0
