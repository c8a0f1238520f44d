"""What a fold left on the disk: folders that can be passed wherever a path is taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Folder:
    path: Path

    def __fspath__(self) -> str:
        """The path, for `open`, `Path` and every library that takes one."""
        return str(self.path)

    def __str__(self) -> str:
        """The path."""
        return str(self.path)


@dataclass(frozen=True)
class SavedAdapter(_Folder):
    """A folder with a PEFT adapter: `PeftModel.from_pretrained(hf_model, adapter)`."""


@dataclass(frozen=True)
class MergedWeights(_Folder):
    """A folder with a model and its tokenizer: `AutoModelForCausalLM.from_pretrained(weights)`."""
