"""A Hugging Face sequence classifier: texts → logits of its labels.

Texts are read in batches of similar length, longest first, in evaluation mode and without gradients. A text that is
longer than the model reads is cut on the right; of a pair only its first text is. Nothing is loaded before texts are
read, and `close` frees it again: a detector's model need not lie in memory beside the model that is evaluated.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iconoclast_tl.detectors.config import SequenceModelConfig
from iconoclast_tl.detectors.detector import Footprint
from iconoclast_tl.execution.batching import Room
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.failures import first_line, loading_errors
from iconoclast_tl.models.fingerprint import fingerprint_of
from iconoclast_tl.models.load import default_device, require_device
from iconoclast_tl.models.source import INDEX, SINGLE, require_complete_folder
from iconoclast_tl.models.stored import weight_files

log = logging.getLogger(__name__)
Text = str | tuple[str, str]
"""What a model reads: a text, or a pair (premise, hypothesis)."""
READ_BESIDE: Final = ("*token*", "vocab*", "merges.txt", "*.model", "*.py")
"""Files of a folder, besides its weights, on which labels depend."""
POSITIONS: Final = ("position_embeddings", "position_embedding", "embed_positions", "wpe")
"""What architectures call their tables of absolute positions."""
ENDLESS: Final = 10**9
"""A length beyond this is how tokenizers say that they know of none."""


@dataclass(frozen=True)
class _Loaded:
    hf: Any
    room: Room
    fingerprint: str


class SequenceModel:
    """A sequence classifier by hub id or folder; its files are looked at when needed, its weights last.

    Every property and method but `close` raises `UserError` for a name that leads to no sequence classifier: an
    unknown folder or hub id, no weights or tokenizer, another kind of model, labels that do not exclude each other.
    """

    def __init__(self, name: str, config: SequenceModelConfig) -> None:
        self.name, self.config = name, config
        self._folder = Path(name).expanduser()
        self._place = str(self._folder) if self._folder.is_dir() else name
        self.n_cut = 0
        """How many of the texts that `logits` read last were cut."""
        self._loaded: _Loaded | None = None

    @cached_property
    def kind(self) -> Any:
        """What its config.json says, as transformers reads it."""
        from transformers import AutoConfig

        _require_folder(self.name)
        try:
            kind = AutoConfig.from_pretrained(self._place, **self._source)
        except _errors() as error:
            raise _not_loaded(self.name, error) from error
        _require_classifier(self.name, kind)
        return kind

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, padding and cutting on the right: so positions count from a text's first token."""
        from transformers import AutoTokenizer

        options = {"padding_side": "right", "truncation_side": "right", **self._source}
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._place, **options)
        except _errors() as error:
            raise UserError(f"cannot load the tokenizer of {self.name}", got=first_line(error)) from error
        # transformers makes one without words where there are no files.
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise UserError(f"{self.name} has no tokenizer", got="no vocabulary", mend="save the tokenizer there too")
        return tokenizer

    @property
    def labels(self) -> tuple[str, ...]:
        """Its labels in the order of the logits."""
        named = {int(index): str(label) for index, label in self.kind.id2label.items()}
        return tuple(named[index] for index in sorted(named))

    @property
    def device(self) -> str:
        """Where it goes. Raises `UserError` for a device that is not here."""
        if self.config.device == "auto":
            return default_device()
        require_device(self.config.device)
        return self.config.device

    @property
    def dtype(self) -> str:
        """How its weights are held there."""
        if self.config.dtype != "auto":
            return self.config.dtype
        fast = self.device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if fast else "float32"

    @cached_property
    def max_length(self) -> int | None:
        """Tokens that it reads of a text, those included that its tokenizer adds; None for no end.

        Raises `UserError` for a setting that goes beyond its table of positions.
        """
        table = self._size[1]
        if self.config.max_length is not None:
            if table is not None and self.config.max_length > table:
                raise UserError(f"{self.name} has positions for fewer tokens", got=self.config.max_length, want=table)
            return self.config.max_length
        built = getattr(self.kind, "max_position_embeddings", None)
        limits = [limit for limit in (self.tokenizer.model_max_length, table, built) if limit and 0 < limit < ENDLESS]
        return int(min(limits)) if limits else None

    def check(self) -> None:
        """Raise the `UserError` of every mistake that can be told without its weights."""
        _ = self.kind, self.device, self.tokenizer, self.max_length

    def identity(self) -> dict[str, Any]:
        """Which model it is, as JSON, before it is loaded: equal ones give equal logits up to rounding."""
        held = {"dtype": self.dtype, "max_length": self.config.max_length}
        return {"model": self.name, "revision": self.config.revision, **self._stored, **held}

    @property
    def fingerprint(self) -> str | None:
        """Names the weights (SHA-256 over configuration and a sample of every parameter); None before they are read."""
        return self._loaded.fingerprint if self._loaded else None

    def lengths(self, texts: Sequence[Text]) -> list[int]:
        """Tokens of every text before anything is cut, those included that the tokenizer adds."""
        if not texts:
            return []
        return [len(ids) for ids in self.tokenizer(*_columns(texts), verbose=False)["input_ids"]]

    def plain(self, text: str) -> str:
        """The text with a space inside whatever the tokenizer would take for a token of its own, such as </s>.

        Some architectures read their result at such a token: it must not come from what was said.
        """
        return self._marks.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def logits(self, texts: Sequence[Text], track: Track = silent, description: str = "") -> Float[Tensor, "n labels"]:
        """Logits of every text, in order, in float32 on the CPU; `n_cut` then says how many texts were cut.

        Raises `UserError` for weights that cannot be loaded or are missing (transformers would fill them with random
        numbers), and for logits that are not finite; `torch.OutOfMemoryError` where a single text does not fit.
        """
        found = torch.empty(len(texts), len(self.labels))
        if not texts:
            return found
        lengths, most = self.lengths(texts), self.max_length
        self.n_cut = sum(length > most for length in lengths) if most else 0
        if self.n_cut:
            log.warning("%s reads %s tokens: %d of %d texts were cut", self.name, most, self.n_cut, len(texts))
        if self._loaded is None:
            self._loaded = self._load()
        loaded = self._loaded

        def read(rows: Sequence[int]) -> None:
            found[list(rows)] = self._forward(loaded.hf, [texts[row] for row in rows])

        loaded.room.over(sorted(range(len(texts)), key=lambda row: -lengths[row]), read, track, description)
        if not bool(found.isfinite().all()):
            mend = "pass a wider dtype, such as float32"
            raise UserError(f"{self.name} gives values that are not finite", got=self.dtype, mend=mend)
        return found

    def footprint(self) -> Footprint:
        """Bytes of its weights on its device, loaded or not; batches come on top, and halve where there is no room."""
        return Footprint(self.device, self._size[0] * getattr(torch, self.dtype).itemsize)

    def close(self) -> None:
        """Free its weights; they are read again when texts are."""
        if self._loaded is None:
            return
        self._loaded = None
        gc.collect()  # modules may refer to each other in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _source(self) -> dict[str, Any]:
        return {"revision": self.config.revision, "trust_remote_code": self.config.trust_remote_code}

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        marks = {*self.tokenizer.all_special_tokens}
        marks |= {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted((mark for mark in marks if len(mark) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")  # of none: nothing is found

    @cached_property
    def _stored(self) -> dict[str, str | None]:
        _ = self.kind  # which looks whether the folder is complete, and fetches what tells a commit
        if self._folder.is_dir():
            return {"files": _digest(self._folder)}
        return {"commit": _commit(self.name, self.config.revision)}

    @cached_property
    def _size(self) -> tuple[int, int | None]:
        """Number of parameters, and rows of its table of positions, from the model without weights."""
        from accelerate import init_empty_weights
        from transformers import AutoModelForSequenceClassification

        try:
            with init_empty_weights(include_buffers=True):
                hf = AutoModelForSequenceClassification.from_config(
                    self.kind, trust_remote_code=self.config.trust_remote_code
                )
        except _errors() as error:
            raise _not_loaded(self.name, error) from error
        return sum(parameter.numel() for parameter in hf.parameters()), _positions(hf)

    def _load(self) -> _Loaded:
        from transformers import AutoModelForSequenceClassification

        self.check()
        options = {"dtype": getattr(torch, self.dtype), "device_map": {"": self.device}, "use_safetensors": True}
        try:
            hf, found = AutoModelForSequenceClassification.from_pretrained(
                self._place, output_loading_info=True, **options, **self._source
            )
        except _errors() as error:
            raise _not_loaded(self.name, error) from error
        if missing := sorted(found["missing_keys"]):
            raise UserError(
                f"{self.name} lacks weights of a sequence classifier",
                got=f"{len(missing)} missing, first {missing[0]}",
                want="a model that was trained to classify, with its head",
            )
        if self.tokenizer.pad_token_id is not None:  # decoders look for a text's last token by it
            hf.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        rows = self.config.batch_size if self.tokenizer.pad_token_id is not None else 1
        return _Loaded(hf.eval().requires_grad_(False), Room(rows), fingerprint_of(hf))

    @torch.no_grad()
    def _forward(self, hf: Any, texts: Sequence[Text]) -> Float[Tensor, "rows labels"]:
        cut = {"truncation": "only_first", "max_length": self.max_length} if self.max_length else {}
        encoded = self.tokenizer(*_columns(texts), padding=len(texts) > 1, return_tensors="pt", verbose=False, **cut)
        words = getattr(hf.config.get_text_config(), "vocab_size", None)
        if words is not None and int(encoded["input_ids"].max()) >= words:
            got = f"token {int(encoded['input_ids'].max())}"
            raise UserError(f"the tokenizer of {self.name} is not its model's", got=got, want=f"less than {words}")
        taken = inspect.signature(hf.forward).parameters
        inputs = {name: tensor.to(self.device) for name, tensor in encoded.items() if name in taken}
        cache = {"use_cache": False} if "use_cache" in taken else {}
        logits: Tensor = hf(**inputs, **cache).logits
        return logits.float().cpu()


def _errors() -> tuple[type[Exception], ...]:
    """What libraries raise for files that cannot be had or do not fit, or that need a library that is not here."""
    return (*loading_errors(), ImportError)


def _columns(texts: Sequence[Text]) -> tuple[list[str], ...]:
    """Single texts as one column, pairs as two, as tokenizers take them."""
    rows = [(text,) if isinstance(text, str) else text for text in texts]
    return tuple(list(column) for column in zip(*rows, strict=True))


def _require_folder(name: str) -> None:
    require_complete_folder(name)
    path = Path(name).expanduser()
    if path.is_dir() and not any((path / file).is_file() for file in (SINGLE, INDEX)):
        raise UserError(f"{name} has no weights", got=f"no {SINGLE}", want=f"{SINGLE}, or {INDEX} and its files")


def _not_loaded(name: str, error: Exception) -> UserError:
    want = "a hub id that can be reached, or a folder with a sequence classifier"
    return UserError(f"cannot load the classifier {name}", got=first_line(error), want=want)


def _require_classifier(name: str, kind: Any) -> None:
    """Raise `UserError` where config.json is of another kind of model, or of labels that do not exclude each other."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    built = list(kind.architectures or ())
    known = kind.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    is_one = not built or any("SequenceClassification" in architecture for architecture in built)
    with_code = "AutoModelForSequenceClassification" in (getattr(kind, "auto_map", None) or {})
    if not with_code and not (known and is_one):
        got = ", ".join(built) or f"model_type {kind.model_type}"
        want = "an architecture that ends in ForSequenceClassification"
        raise UserError(f"{name} is no sequence classifier", got=got, want=want)
    problem = kind.problem_type
    if len(kind.id2label) < 2 or problem in ("regression", "multi_label_classification"):
        got = f"{len(kind.id2label)} labels" + (f", problem type {problem}" if problem else "")
        want = "two labels or more, of which one is right"
        raise UserError(f"labels of {name} do not exclude each other", got=got, want=want)


def _positions(hf: nn.Module) -> int | None:
    """How many tokens its tables of absolute positions hold; None where it has none.

    Some count from behind the padding's index (RoBERTa), some leave the first rows unused (BART's `offset`).
    """
    tables = [
        module
        for name, module in hf.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS
    ]
    unused = [
        int(getattr(table, "offset", 0)) + (0 if table.padding_idx is None else table.padding_idx + 1)
        for table in tables
    ]
    return min((table.num_embeddings - rows for table, rows in zip(tables, unused, strict=True)), default=None)


def _commit(name: str, revision: str | None) -> str | None:
    """The commit of a hub's repository that was last read here by this name and revision."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def _digest(folder: Path) -> str:
    """SHA-256 over every byte on which labels depend: a head alone that was trained further is another classifier."""
    beside = {file for pattern in READ_BESIDE for file in folder.glob(pattern) if file.is_file()}
    weights = {folder / name for name in weight_files(folder)}
    state = hashlib.sha256()
    for file in sorted(beside | weights | {folder / "config.json"}):
        with file.open("rb") as opened:
            state.update(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()} ".encode())
    return state.hexdigest()
