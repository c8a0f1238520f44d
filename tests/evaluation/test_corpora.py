"""What of a text is given and what is scored, where named corpora come from, and what is no corpus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.evaluation.corpora import Corpus, Text, load_corpus, on_distribution, require_corpus
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.chat import ChatFormat
from iconoclast_tl.prompts.prompt import Prompt


@pytest.fixture
def chat(llama: Model) -> ChatFormat:
    """The tests' words and template; this tokenizer puts no BOS before raw text."""
    return ChatFormat(llama.tokenizer)


@pytest.fixture
def with_bos(llama: Model) -> ChatFormat:
    """The same with a tokenizer that puts a BOS before raw text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = llama.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return ChatFormat(tokenizer)


def read(texts: Corpus, chat: ChatFormat) -> list[tuple[str, str]]:
    """Context and scored tokens as words."""
    decode = chat.tokenizer.decode
    return [(decode(text.context), decode(text.scored)) for text in texts.rows]


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_raw_text_is_scored_from_its_second_token_and_cut(tmp_path: Path, chat: ChatFormat) -> None:
    file = table(tmp_path / "t.jsonl", [{"t": "w1 w2 w3 w4"}, {"t": "w5"}, {"t": "w6 w7"}, {"t": "w8 w9"}])
    found = load_corpus(f"{file}#t", chat, n=2, max_tokens=3)
    assert read(found, chat) == [("w1", "w2 w3"), ("w6", "w7")]
    assert found.left_out == 1  # one word predicts nothing
    assert found.name == f"{file}#t"
    assert found.rows == load_corpus(f"{file}#t", chat, 2, 3).rows != load_corpus(f"{file}#t", chat, 2, 4).rows


def test_after_a_bos_the_first_word_is_scored_too(tmp_path: Path, with_bos: ChatFormat) -> None:
    file = tmp_path / "t.txt"
    file.write_text("w1 w2 w3\nw5\n")
    found = load_corpus(str(file), with_bos, n=9, max_tokens=3)
    assert read(found, with_bos) == [("<bos>", "w1 w2"), ("<bos>", "w5")]
    assert found.left_out == 0


def test_of_a_chat_the_answer_alone_is_scored(tmp_path: Path, with_bos: ChatFormat) -> None:
    rows = [
        {"ask": "w1 w2", "say": "w3 w4 w5", "system": "w9"},
        {"ask": "w1", "say": "  "},
        {"ask": "w6", "say": "w7 w8"},
        {"ask": " ".join(["w1"] * 9), "say": "w2"},
        {"ask": "w10", "say": "w11"},
    ]
    found = load_corpus(f"{table(tmp_path / 'c.jsonl', rows)}#ask->say", with_bos, n=9, max_tokens=8)
    assert read(found, with_bos) == [
        ("<bos> <system> w9 <user> w1 w2 <assistant>", "w3"),  # cut at 8 tokens, the prompt's included
        ("<bos> <user> w6 <assistant>", "w7 w8"),
        ("<bos> <user> w10 <assistant>", "w11"),
    ]  # one BOS, from the template
    assert found.left_out == 2  # nothing said; and no room left by the prompt
    assert found.rows[1].context == with_bos.encode(Prompt("w6"))


def test_a_token_across_prompt_and_answer_is_scored(tmp_path: Path, llama: Model) -> None:
    raw = ChatFormat(llama.tokenizer, raw_prompts=True)
    file = table(tmp_path / "c.jsonl", [{"q": "w1 w", "a": "2 w3"}])
    assert read(load_corpus(f"{file}#q->a", raw, 1, 9), raw) == [("w1", "w2 w3")]


def test_responses_are_scored_to_their_end_token() -> None:
    found = on_distribution([[7, 8], [9], [10]], [(11, 2), (), (12,)])
    assert found == Corpus("on-distribution", (Text([7, 8], [11, 2]), Text([10], [12])), left_out=1)
    with pytest.raises(UserError, match="no text of the corpus on-distribution"):
        on_distribution([[7]], [()])


def test_the_pile_is_streamed_and_no_more_read_than_asked_for(
    chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked, read_rows = list[Any](), list[int]()

    def rows() -> Iterator[dict[str, str]]:
        for i in range(1000):
            read_rows.append(i)
            yield {"text": f"w{i} w1 w2" if i != 1 else ""}

    def load(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read(load_corpus("pile", chat, 3, 2), chat) == [("w0", "w1"), ("w2", "w1"), ("w3", "w1")]
    assert asked == [("monology/pile-uncopyrighted", {"split": "train", "streaming": True})]
    assert len(read_rows) < 10


def test_of_alpaca_only_instructions_without_input_are_taken_in_arditis_order(
    chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    kept = [{"instruction": f"w{i}", "input": " " if i % 2 else "w3", "output": f"w{i} w1"} for i in range(20)]
    whole, asked = datasets.Dataset.from_list(kept), list[Any]()

    def load(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return whole

    monkeypatch.setattr(datasets, "load_dataset", load)
    order = [row["instruction"] for row in whole.shuffle(seed=42) if row["input"] == " "]
    found = read(load_corpus("alpaca", chat, 6, 20), chat)
    assert found == [(f"<bos> <user> {word} <assistant>", f"{word} w1") for word in order[:6]]
    assert order != sorted(order)
    assert asked == [("tatsu-lab/alpaca", {"split": "train", "streaming": False})]


def test_what_is_no_corpus_is_said_in_one_line(tmp_path: Path, chat: ChatFormat) -> None:
    file = table(tmp_path / "c.jsonl", [{"q": "w1", "a": "w2", "n": 3}])
    text = tmp_path / "t.txt"
    text.write_text("w1\n")
    for name, message in (
        ("none.jsonl#text", r"there is no corpus file none\.jsonl: got none\.jsonl#text"),
        ("piel", "there is no corpus 'piel': want pile, alpaca, .*; did you mean pile?"),
        (f"{file}#zz", "has no column 'zz'"),
        (f"{file}#q->zz", "has no column 'zz'"),
        (f"{file}#zz->a", "has no column 'zz'"),
        (f"{file}#q->n", "something other than text: got 3"),
        (f"{text}#q->a", "has no columns: got #q->a; want a table"),
        (f"{tmp_path}/gone.jsonl#q->a", "there is no corpus file"),
        (str(text), "no text of the corpus .* can be scored: got 1 texts"),
        ("pile", "cannot load the hub dataset monology/pile-uncopyrighted: .*or name a corpus that is at hand"),
        ("alpaca", "cannot load the hub dataset tatsu-lab/alpaca"),
    ):
        with pytest.raises(UserError, match=message):
            load_corpus(name, chat, 4, 20)
    for name in ("pile", "alpaca", "on-distribution", str(text), f"{file}#q->a", "owner/name@train"):
        require_corpus(name)
    with pytest.raises(ValueError, match="made of responses"):
        load_corpus("on-distribution", chat, 4, 20)
