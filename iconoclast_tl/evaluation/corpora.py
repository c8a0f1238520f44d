"""Texts on which an edit should change nothing, ready to be scored: which tokens are given, and which are predicted.

The three corpora of Arditi et al. (Refusal in Language Models Is Mediated by a Single Direction, 2406.11717) go by
their names; one's own is a source as for prompts (`iconoclast_tl.prompts.sources`):

    pile                              monology/pile-uncopyrighted, streamed: raw text
    alpaca                            tatsu-lab/alpaca, instructions without a further input, shuffled: their outputs
    on-distribution                   what the unedited model itself says to given prompts (`on_distribution`)
    texts.jsonl#text                  raw text of one's own; also a .txt, a text a line, and datasets on the hub
    chats.jsonl#question->answer      answers of one's own, each in the chat that the question opens

Raw text is tokenised as the tokenizer does it by itself, with its BOS where it has one, and every token but the first
is scored. Of a chat only the answer's own text is scored, and not the end of the turn that a template would write after
it: templates differ in that, and Arditi's loss leaves it out, too. Of responses every token is, also the end token.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.prompts.chat import ChatFormat
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.prompts.sources import TABLES, PromptSource, load_prompts, load_table
from iconoclast_tl.prompts.tokens import Tokens

PILE, ALPACA, ON_DISTRIBUTION = "pile", "alpaca", "on-distribution"
CORPORA = (PILE, ALPACA, ON_DISTRIBUTION)
PILE_ID, ALPACA_ID = "monology/pile-uncopyrighted", "tatsu-lab/alpaca"
ALPACA_SEED = 42
"""By which Arditi shuffles it."""
ARROW = "->"
FORMS = "FILE#column or owner/name@split#column for raw text, …#question->answer for chats"


@dataclass(frozen=True)
class Text:
    """Tokens that are given (at least one: nothing predicts the first), and the tokens that are scored after them."""

    context: Tokens
    scored: Tokens


@dataclass(frozen=True)
class Corpus:
    """Texts to be scored; `left_out` of its source were too short, or had no room for what is scored."""

    name: str
    rows: tuple[Text, ...]
    left_out: int = 0


def require_corpus(name: str) -> None:
    """Raise `UserError` where `name` can be no corpus; reads nothing but whether a file of that name is there."""
    file = Path(PromptSource.parse(name).name)
    if file.suffix in (".txt", *TABLES) and not file.exists():
        raise UserError(f"there is no corpus file {file}", got=name, want=f"{', '.join(CORPORA)}, {FORMS}")
    if name in CORPORA or file.exists() or any(sign in name for sign in "#@/."):
        return
    close = difflib.get_close_matches(name, CORPORA, n=1)
    raise UserError(
        f"there is no corpus {name!r}",
        want=f"{', '.join(CORPORA)}, {FORMS}",
        mend=f"did you mean {close[0]}?" if close else None,
    )


def load_corpus(name: str, chat: ChatFormat, n: int, max_tokens: int) -> Corpus:
    """The first n texts of a corpus that can be scored, each cut to at most `max_tokens` tokens (prompts included).

    Raises `UserError` for an unknown name, a source that cannot be read, a missing column, and a corpus in which no
    text has a token to score. `on-distribution` is made from responses: `on_distribution`.
    """
    require_corpus(name)
    if name == ON_DISTRIBUTION:
        raise ValueError("the on-distribution corpus is made of responses, by `on_distribution`")
    if name == ALPACA or (name != PILE and ARROW in (PromptSource.parse(name).column or "")):
        exchanges = _alpaca() if name == ALPACA else _exchanges(name)
        return _first(name, (chat_text(*exchange, chat, max_tokens) for exchange in exchanges), n, max_tokens)
    texts = _pile() if name == PILE else (prompt.text for prompt in load_prompts(name))
    return _first(name, (raw_text(text, chat, max_tokens) for text in texts), n, max_tokens)


def on_distribution(rows: Sequence[Tokens], responses: Sequence[Sequence[int]]) -> Corpus:
    """What the base said to the prompts `rows`, end tokens included; `UserError` where it said nothing at all."""
    pairs = zip(rows, responses, strict=True)
    return _first(ON_DISTRIBUTION, (Text(row, list(said)) if said else None for row, said in pairs), len(rows), None)


def raw_text(text: str, chat: ChatFormat, max_tokens: int) -> Text | None:
    """A text scored from its second token on (its first word, where the tokenizer puts a BOS before it)."""
    ids = list(chat.tokenizer(text, verbose=False)["input_ids"])[:max_tokens]
    return Text(ids[:1], ids[1:]) if len(ids) > 1 else None


def chat_text(prompt: Prompt, answer: str, chat: ChatFormat, max_tokens: int) -> Text | None:
    """An answer scored after its prompt.

    The two are tokenised as one text: a token that spans where they meet is scored, and the context ends before it.
    """
    context = chat.encode(prompt)
    text = chat.render(prompt) + answer
    whole = list(chat.tokenizer(text, add_special_tokens=chat.raw_prompts, verbose=False)["input_ids"])
    common = next((i for i, (a, b) in enumerate(zip(context, whole, strict=False)) if a != b), len(context))
    given, scored = whole[:common], whole[common:max_tokens]
    return Text(given, scored) if answer.strip() and given and scored else None


def _first(name: str, texts: Iterable[Text | None], n: int, max_tokens: int | None) -> Corpus:
    rows, left_out = list[Text](), 0
    for text in texts:
        if text is None:
            left_out += 1
        else:
            rows.append(text)
        if len(rows) == n:
            break
    if not rows:
        raise UserError(
            f"no text of the corpus {name} can be scored",
            got=f"{left_out} texts" + (f", at most {max_tokens} tokens of each" if max_tokens else ""),
            want="texts of two tokens or more, answers that are not blank and whose prompts leave room for them",
        )
    return Corpus(name, tuple(rows), left_out)


def _pile() -> Iterator[str]:
    return (str(row["text"]) for row in _hub_rows(PILE_ID, streaming=True))


def _alpaca() -> Iterator[tuple[Prompt, str]]:
    """Instructions that stand by themselves, and their outputs."""
    rows = _hub_rows(ALPACA_ID, shuffled=ALPACA_SEED)
    return ((Prompt(row["instruction"]), str(row["output"])) for row in rows if not row["input"].strip())


def _exchanges(spec: str) -> Iterator[tuple[Prompt, str]]:
    """Prompts and answers of a source with `#question->answer`; a column `system` is the prompt's own message."""
    source = PromptSource.parse(spec)
    question, _, answer = (source.column or "").partition(ARROW)
    if Path(source.name).suffix == ".txt":
        raise UserError(f"{source.name} has no columns", got=f"#{source.column}", want="a table, such as .jsonl")
    rows = load_table(source)
    for column in (question, answer):
        if rows and column not in rows[0]:
            raise UserError(f"{spec} has no column {column!r}", want=f"one of {', '.join(map(str, rows[0]))}")
    for row in rows:
        system = _cell(row.get("system"), spec) or None
        yield Prompt(_cell(row[question], spec).strip(), system), _cell(row[answer], spec)


def _cell(value: Any, spec: str) -> str:
    """Text of a cell; empty for what tables use as 'nothing here' (None, NaN)."""
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{spec} holds something other than text", got=repr(value)[:80], want="columns of text")
    return value


def _hub_rows(name: str, *, streaming: bool = False, shuffled: int | None = None) -> Iterator[Mapping[str, Any]]:
    """Rows of a dataset's `train`. Streamed, no more is fetched than is read (the Pile has some 800 GB)."""
    import datasets

    try:
        dataset = datasets.load_dataset(name, split="train", streaming=streaming)
        yield from dataset if shuffled is None else dataset.shuffle(seed=shuffled)
    except Exception as error:  # the hub client raises a dozen kinds; each means that this corpus cannot be had
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load the hub dataset {name}",
            got=first_line,
            want="a connection to the hub, or the dataset in its cache",
            mend=f"or name a corpus that is at hand: {FORMS}",
        ) from error
