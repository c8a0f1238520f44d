"""The command line in this process, on a tiny random model and invented prompts."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONTEXT = 96


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """What stands on standard error, without the dates that a log gets."""
        return re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", self.err, flags=re.MULTILINE)

    @property
    def error(self) -> str:
        """The one line that tells a user's mistake."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.err.rstrip("\n").endswith(line), self.err
        return line


Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings from the caller's environment, and nothing written into the caller's folder."""
    for name in [name for name in os.environ if name.upper().startswith("ICONOCLAST_TL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `iconoclast-tl` with arguments; a traceback is an error of the test."""
    from iconoclast_tl.cli import main

    def _cli(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["iconoclast-tl", *map(str, arguments)])
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
        return Outcome(code, out.getvalue(), err.getvalue())

    return _cli


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers and d_model 32 over single characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789 .,?!<>"]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *letters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    LlamaForCausalLM(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def prompts(tmp_path: Path) -> list[str]:
    """Options that name ten prompts a side."""
    for side in ("target", "neutral"):
        (tmp_path / f"{side}.txt").write_text("".join(f"{side} {i}\n" for i in range(10)))
    return ["--target", str(tmp_path / "target.txt"), "--neutral", str(tmp_path / "neutral.txt")]


@pytest.fixture
def common(model: Path, prompts: list[str]) -> list[str]:
    """Options of a command that works."""
    return ["--model", str(model), *prompts, "--set", "evaluation.max_new_tokens=4", "--set", "evaluation.kl_tokens=4"]


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder; None for the folder where it does not exist."""
    if not folder.exists():
        return {"": None}
    return {item.relative_to(folder).as_posix(): item.read_bytes() for item in folder.rglob("*") if item.is_file()}
