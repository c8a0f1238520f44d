"""The tail is what the template writes after every instruction, whatever the instruction ends in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from iconoclast_tl.prompts.chat import ChatFormat
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.prompts.tail import PROBES

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<start_of_turn>user\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}<start_of_turn>model{{ '\n' }}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
INST = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] | trim }} [/INST]{% endfor %}"
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
NONE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
SPECIAL = [
    "<s>", "<|start|>", "<|end|>", "<|eot|>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>",
]  # fmt: skip
TEXTS = ("plain", "a list;", "x", "12%", "naïve", "q.\nr", "]", "end...", "(so)", "What is it?", "a word 🙂🙂")


@pytest.fixture(scope="session")
def pieces() -> PreTrainedTokenizerFast:
    """Byte pairs, cut as Llama 3 and Qwen do: punctuation takes the line breaks behind it along."""
    core = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    text = "user assistant model: [INST] [/INST] <think> </think>\n\n Go on.\n Really?\n word\n\n" * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator([text], trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    return tokenizer


def chat(tokenizer: Any, template: str | None, **options: Any) -> ChatFormat:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return ChatFormat(tokenizer, **options)


def decoded(form: ChatFormat) -> str:
    return str(form.tokenizer.decode(form.tail))


@pytest.mark.parametrize("system", [None, "Be brief"])
@pytest.mark.parametrize(
    ("template", "tail"),
    [
        (LLAMA, "<|eot|><|start|>assistant<|end|>\n\n"),
        (GEMMA, "<end_of_turn>\n<start_of_turn>model\n"),
        (CHATML, "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        (INST, " [/INST]"),
    ],
)
def test_the_tail_is_what_the_template_writes_after_any_text(
    pieces: Any, template: str, tail: str, system: str | None
) -> None:
    form = chat(pieces, template, system=system)
    assert decoded(form) == tail
    for text in TEXTS:
        for own in (None, "Another"):
            assert tuple(form.encode(Prompt(text, own))[-len(form.tail) :]) == form.tail
    one_more = {form.encode(Prompt(text))[-len(form.tail) - 1] for text in TEXTS}
    assert len(one_more) > 1  # the negative control: the token before it is the instruction's


def test_a_token_that_merges_with_the_end_of_some_texts_is_not_in_the_tail(pieces: Any) -> None:
    form = chat(pieces, PLAIN)
    whole = form.tokenizer("\nassistant:")["input_ids"]
    assert decoded(form) == "assistant:"
    assert form.encode(Prompt("word"))[-len(whole) :] == whole  # here the line break is a token of its own
    assert form.encode(Prompt("Go on."))[-len(whole) :] != whole


@pytest.mark.parametrize("template", [NONE, "{% for m in messages %}{{ m['content'] | upper }} end{% endfor %}"])
def test_without_a_tail_there_is_none(pieces: Any, template: str) -> None:
    """Nor where the template writes another text than it is given."""
    assert chat(pieces, template).tail == ()
    assert chat(pieces, template.replace("{% endfor %}", " end{% endfor %}").replace("| upper", "")).tail != ()


def test_raw_prompts_have_no_tail(pieces: Any) -> None:
    assert chat(pieces, LLAMA, raw_prompts=True).tail == ()
    assert chat(pieces, None, raw_prompts=True).tail == ()


def test_a_system_message_behind_the_text_is_not_in_the_tail(pieces: Any) -> None:
    behind = (
        "{{ messages[-1]['content'] }}<|eot|>{{ messages[0]['content'] if messages | length > 1 }}<|end|>{{ '\n\n' }}"
    )
    assert decoded(chat(pieces, behind)) == "<|eot|><|end|>\n\n"
    assert decoded(chat(pieces, behind, system="Be brief")) == "<|end|>\n\n"


class Slow:
    """A tokenizer that does not tell where its tokens lie."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.fast = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fast, name)

    def __call__(self, text: str, **options: Any) -> Any:
        if "return_offsets_mapping" in options:
            raise NotImplementedError
        return self.fast(text, **options)


@pytest.mark.parametrize("template", [LLAMA, GEMMA, CHATML, INST, PLAIN, NONE])
def test_a_tokenizer_without_offsets_has_the_same_tail(pieces: Any, template: str) -> None:
    fast = chat(pieces, template)
    assert ChatFormat(Slow(fast.tokenizer)).tail == fast.tail


@pytest.mark.parametrize("slow", [False, True])
def test_texts_that_the_tokenizer_does_not_know_are_not_taken_for_the_tail(slow: bool) -> None:
    """Where all texts are the same unknown tokens, what they have in common is not the template's alone."""
    core = Tokenizer(models.WordLevel({"<unk>": 0, "<user>": 1, "<assistant>": 2, ":": 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    tokenizer.chat_template = "<user> {{ messages[0]['content'] }} <assistant> :"
    form = ChatFormat(Slow(tokenizer) if slow else tokenizer)
    assert {tuple(form.encode(Prompt(text))) for text in PROBES} == {(1, 0, 0, 0, 2, 3)}
    assert form.tail == (2, 3)
