"""From prompts to tokens: one BOS, the system message wherever the template puts it, padding that shifts nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.prompts.chat import ChatFormat
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.prompts.tokens import left_pad, require_context

WITH_SYSTEM = (
    "{{ bos_token }}{% for m in messages %} <{{ m['role'] }}> {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    " <{{ m['role'] }}> {{ m['content'] }}{% endfor %} <assistant>"
)
DROPS_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %} <user> {{ m['content'] }}{% endif %}"
    "{% endfor %} <assistant>"
)
BOS = 1


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """A word tokenizer that writes BOS by itself, as Llama's does."""
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<system>", "<assistant>", "be", "brief", "hello", "you"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def chat(words: Any, template: str | None, **options: Any) -> ChatFormat:
    """The words with a template."""
    import copy

    tokenizer = copy.deepcopy(words)
    tokenizer.chat_template = template
    return ChatFormat(tokenizer, **options)


@pytest.mark.parametrize("template", [WITH_SYSTEM, NO_SYSTEM, DROPS_SYSTEM])
def test_there_is_one_bos(words: Any, template: str) -> None:
    form = chat(words, template)
    for prompt in (Prompt("hello you"), Prompt("hello you", system="be brief")):
        assert form.encode(prompt).count(BOS) == 1
        assert form.encode(prompt)[0] == BOS
        # The negative control: tokenised as plain text is, the same rendering gets a second one.
        assert form.tokenizer(form.render(prompt))["input_ids"][:2] == [BOS, BOS]


def test_raw_prompts_get_the_tokenizers_bos_and_no_template(words: Any) -> None:
    form = chat(words, None, raw_prompts=True)
    assert form.encode(Prompt("hello you")) == [BOS, 9, 10]
    assert form.render(Prompt("hello", system="be brief")) == "be brief\n\nhello"
    assert chat(words, WITH_SYSTEM, raw_prompts=True).render(Prompt("hello")) == "hello"


def test_the_system_role_is_used_where_there_is_one(words: Any) -> None:
    rendered = chat(words, WITH_SYSTEM).render(Prompt("hello", system="be brief"))
    assert rendered == "<s> <system> be brief <user> hello <assistant>"


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_without_a_system_role_the_message_goes_ahead_of_the_users(words: Any, template: str) -> None:
    form = chat(words, template)
    assert form.render(Prompt("hello", system="be brief")) == "<s> <user> be brief\n\nhello <assistant>"
    assert form.render(Prompt("hello")) == "<s> <user> hello <assistant>"


def test_a_prompts_own_system_message_wins(words: Any) -> None:
    form = chat(words, WITH_SYSTEM, system="be brief")
    assert "<system> be brief" in form.render(Prompt("hello"))
    assert "<system> be you" in form.render(Prompt("hello", system="be you"))


@pytest.mark.parametrize("template", [None, ""])
def test_no_template_is_the_users_line(words: Any, template: str | None) -> None:
    with pytest.raises(UserError, match=r"no chat template.*--raw-prompts"):
        chat(words, template)
    chat(words, template, raw_prompts=True)


@pytest.mark.parametrize("template", ["{{ raise_exception('never') }}", "{% if %}"])
@pytest.mark.parametrize("system", [None, "be brief"])
def test_a_template_that_cannot_render_is_the_users_line(words: Any, template: str, system: str | None) -> None:
    with pytest.raises(UserError, match="chat template does not render"):
        chat(words, template).render(Prompt("hello", system=system))


ROWS = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=9), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_padding_is_on_the_left_and_positions_do_not_count_it(rows: list[list[int]]) -> None:
    batch = left_pad(rows, pad_id=0)
    for row, ids, mask, positions in zip(
        rows, batch.input_ids.tolist(), batch.attention_mask.tolist(), batch.position_ids.tolist(), strict=True
    ):
        width = len(ids) - len(row)
        assert ids == [0] * width + row
        assert mask == [0] * width + [1] * len(row)
        assert positions[width:] == list(range(len(row)))
        assert not any(positions[:width])


def test_a_prompt_that_does_not_fit_is_told_and_one_that_just_fits_is_not() -> None:
    rows = [[1] * 4, [1] * 6]
    require_context(rows, new_tokens=4, context_length=10)
    require_context(rows, new_tokens=4, context_length=None)
    with pytest.raises(UserError, match=r"prompt 2 is longer.*6 tokens and 4 to generate.*at most 9"):
        require_context(rows, new_tokens=4, context_length=9)
