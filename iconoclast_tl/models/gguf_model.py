"""A model in one GGUF file: configuration, tokenizer and weights as transformers makes them of it, once its metadata
was held against its tensors.

transformers believes the metadata: it builds what that asks for, fills with random numbers what no tensor gives, and
drops tensors without a place. So before anything is allocated, the numbers of layers and of weights must be those of
the tensors; afterwards none may be missing or of another shape. The weights come out dequantised, as an ordinary model.

Nothing beside the file is read: transformers is pointed at an empty folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.failures import loading_errors, not_loaded
from iconoclast_tl.models.gguf_header import GgufHeader, quoted, read_header
from iconoclast_tl.models.gguf_parsed import parsed_once
from iconoclast_tl.models.gguf_rope import ROPE_TENSORS, set_rope
from iconoclast_tl.models.source import gguf_file, short_name

MEND: Final = "fetch it again, or take another conversion of the model"
COUNTS: Final = (
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
)
"""Keys, after the architecture, that say how many of something there are: no more than some tensor's axis is long."""
LONGEST_CONTEXT: Final = 2**31
ROOM_OF_BUFFERS: Final = 2**28
"""Bytes that a small model's constants (masks, rotary tables) may take, however small its file is."""
SPECIAL: Final = ("bos", "eos", "unknown", "padding")
_LAYER = re.compile(r"(?:^blk|\blayers)\.(\d{1,6})\.")


@dataclass(frozen=True, eq=False)
class GgufModel:
    """A GGUF file, and what transformers makes of it."""

    name: str
    """What the user calls it."""
    header: GgufHeader

    @cached_property
    def config(self) -> Any:
        """Its configuration. Raises `UserError` where transformers cannot make one of the metadata."""
        from transformers import AutoConfig

        with self._read() as where:
            config = self._made(AutoConfig.from_pretrained, **where)
        # The author's text must not become the model's name, nor part of what is saved.
        vars(config).pop("_model_name_or_path", None)
        config.name_or_path = self.name
        config._commit_hash = _commit(self.header.path)
        set_rope(config, self.header)
        return config

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer with its chat template, padding on the left."""
        from transformers import AutoTokenizer

        with self._read() as where:
            tokenizer = self._made(AutoTokenizer.from_pretrained, **where, padding_side="left")
        tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = self.name
        return tokenizer

    def weights(self, **options: Any) -> tuple[Any, Mapping[str, Any]]:
        """The model, which is quantised no more, and what transformers says of how it was loaded."""
        from transformers import AutoModelForCausalLM, GgufConfig

        self._require_held()
        with self._read() as where:
            hf, found = self._made(
                AutoModelForCausalLM.from_pretrained,
                **where,
                config=self.config,
                quantization_config=GgufConfig(dequantize=True),
                ignore_mismatched_sizes=True,  # refused below, with the names
                output_loading_info=True,
                **options,
            )
        if mismatched := sorted(found["mismatched_keys"]):
            name, held, asked = mismatched[0]
            raise _contradiction(self.header, f"{name} of shape {tuple(held)}", f"{tuple(asked)}, by its metadata")
        if surplus := [key for key in sorted(found["unexpected_keys"]) if _layer(key) < self.config.num_hidden_layers]:
            raise _no_place(self.header, surplus)
        hf.name_or_path = hf.config.name_or_path = self.name
        return hf, found

    def notes(self, dtype: str) -> list[str]:
        """What a user should know of how it was loaded."""
        from gguf import GGMLQuantizationType

        kinds = [GGMLQuantizationType(number).name for number in sorted({one.kind for one in self.header.tensors})]
        said = [f"{short_name(self.name)}: weights stored as {', '.join(kinds)} are now plain {dtype}"]
        pre = self.header.text("tokenizer.ggml.pre")
        if self.header.text("tokenizer.ggml.model") == "gpt2" and pre is not None and pre not in _known_splits():
            said.append(
                f"transformers does not know the pre-tokenizer {quoted(pre)} and splits text as GPT-2 does, which may "
                "cut numbers and rare words differently"
            )
        return said

    @contextmanager
    def _read(self) -> Iterator[dict[str, Any]]:
        """Arguments of `from_pretrained`. The path is whole: of two files of one name it takes the working folder's."""
        with TemporaryDirectory() as empty, parsed_once(self.header):
            yield {"pretrained_model_name_or_path": empty, "gguf_file": str(self.header.path.absolute())}

    def _made(self, make: Any, *args: Any, **options: Any) -> Any:
        try:
            return make(*args, **options)
        # Metadata of any kind reaches code that expects a sound one, and the tokenizers library raises bare exceptions.
        except Exception as error:
            kinds = (*loading_errors(), ArithmeticError, AttributeError, LookupError, AssertionError)
            if isinstance(error, kinds) or type(error) is Exception:
                raise not_loaded(self.name, error) from error
            raise

    def _require_held(self) -> None:
        """The metadata must ask for as many weights as the tensors hold; nothing is allocated yet."""
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        with init_empty_weights(include_buffers=True):
            hf = self._made(AutoModelForCausalLM.from_config, self.config)
        size = sum(one.n_bytes for one in self.header.tensors)
        if sum(buffer.nbytes for buffer in hf.buffers()) > max(size, ROOM_OF_BUFFERS):
            raise _contradiction(self.header, "constants larger than all its weights", "a context that fits the model")
        tied = set(hf.all_tied_weights_keys)
        asked = {name: tensor.numel() for name, tensor in hf.state_dict().items() if name not in tied}
        apart = {*ROPE_TENSORS, *(("output.weight",) if tied else ())}
        held = {one.name: one.n_elements for one in self.header.tensors if one.name not in apart}
        if sum(asked.values()) > sum(held.values()):
            want = f"{sum(asked.values()):,}, by its metadata"
            raise _contradiction(self.header, f"tensors of {sum(held.values()):,} weights", want)
        if sum(asked.values()) < sum(held.values()) and not _reports_surplus(self.header.architecture):
            raise _no_place(self.header, sorted(set(held) - _placed(self.header, asked)))


def open_gguf(name: str, config: ModelConfig) -> GgufModel | None:
    """The GGUF file that a name refers to, its metadata held against its tensors; None for a folder or hub id.

    Raises `UserError` for one that cannot be had, or cannot be read as a causal language model.
    """
    path = gguf_file(name, config.revision)
    if path is None:
        return None
    if config.quantization != "none":
        raise UserError(
            f"{name} cannot be quantised anew",
            got=f"quantization {config.quantization} and a GGUF file, whose weights are dequantised on loading",
            want="quantization none",
            mend="to quantise on loading, name the model that the file was made from",
        )
    _require_transformers()
    header = read_header(path)
    _require_model(header)
    _require_readable(header)
    _require_counts(header)
    _require_vocabulary(header)
    return GgufModel(name, header)


def _require_transformers() -> None:
    """Raise `UserError` for a version of transformers that cannot be asked to dequantise."""
    import transformers

    if not hasattr(transformers, "GgufConfig"):
        raise UserError(
            "this version of transformers does not dequantise GGUF files",
            got=transformers.__version__,
            want="5.23 or later",
            mend="pip install --upgrade transformers",
        )


def _require_model(header: GgufHeader) -> None:
    """Raise `UserError` for files of other things, and for architectures that transformers does not read."""
    if (kind := header.text("general.type") or "model") != "model":
        raise UserError(f"{header.path} is no model", got=f"general.type {quoted(kind)}", want="a GGUF file of a model")
    if not header.architecture:
        raise UserError(f"{header.path} names no architecture", want="a GGUF file of a model")
    known = _architectures()
    if header.architecture not in known:
        raise UserError(
            f"transformers does not read GGUF files of the architecture {quoted(header.architecture)}",
            want=f"one of {', '.join(known)}",
            mend="name the model that the file was made from: a folder or a hub id",
        )


def _architectures() -> list[str]:
    """Those of decoders that this version of transformers reads, as GGUF files call them."""
    from gguf import MODEL_ARCH_NAMES
    from transformers.integrations.gguf import GGUF_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    readable = {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_ARCHS} - {"t5", "umt5"}
    spelled = {name: {name, name.replace("-", "_"), name.replace("moe", "_moe")} for name in MODEL_ARCH_NAMES.values()}
    return sorted(name for name, forms in spelled.items() if forms & readable)


def _reports_surplus(architecture: str) -> bool:
    """Whether transformers says which tensors it had no place for; for most architectures it drops them silently."""
    from transformers.integrations.gguf import GGUF_ARCHS

    return architecture in GGUF_ARCHS


def _known_splits() -> set[str]:
    """Pre-tokenizers that transformers knows, and those that mean GPT-2's."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    return {"default", "gpt-2", *GGUF_PRE_TOKENIZER_SPLITS}


def _require_readable(header: GgufHeader) -> None:
    """Every kind of storage must be one that can be undone: tried on one block of each."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    for number in sorted({one.kind for one in header.tensors}):
        kind = GGMLQuantizationType(number)
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            first = next(one.name for one in header.tensors if one.kind == number)
            raise UserError(
                f"{header.path} holds weights that cannot be dequantised",
                got=f"{kind.name}, such as {quoted(first)}",
                want="a format that the gguf package reads, such as Q4_K, Q8_0 or BF16",
                mend="take another file of the model",
            ) from error


def _require_counts(header: GgufHeader) -> None:
    """What the metadata counts must be there: layers one by one, everything else along some axis of a tensor."""
    start = header.architecture
    layers = {layer for one in header.tensors if (layer := _layer(one.name)) >= 0}
    claimed = header.number(f"{start}.block_count")
    if claimed != len(layers) or layers != set(range(len(layers))):
        raise _contradiction(header, f"tensors of {len(layers)} layers", f"{claimed}, by its metadata")
    longest = max(max(one.shape) for one in header.tensors)
    for key in COUNTS:
        for count in header.numbers(f"{start}.{key}"):
            if not 0 <= count <= longest:
                raise _contradiction(header, f"{start}.{key} {count}", f"at most {longest}, its tensors' longest axis")
    for key in ("embedding_length", "attention.head_count"):
        if f"{start}.{key}" not in header.fields:  # a default would stand in for it
            raise _contradiction(header, f"no {start}.{key}", "what the model was made with")
    if not any(key.startswith(f"{start}.") and key.endswith("_epsilon") for key in header.fields):
        raise _contradiction(header, f"no {start}.attention.layer_norm_rms_epsilon", "what the model was made with")
    base = header.number(f"{start}.rope.freq_base")
    if base is not None and not base > 0:
        raise _contradiction(header, f"{start}.rope.freq_base {base}", "more than 0")
    context = header.number(f"{start}.context_length")
    if context is not None and not 1 <= context <= LONGEST_CONTEXT:
        raise _contradiction(header, f"a context of {context} tokens", f"1 to {LONGEST_CONTEXT}")


def _require_vocabulary(header: GgufHeader) -> None:
    """There must be a tokenizer, and a row of the embedding for each of its tokens."""
    n_tokens = header.n_strings("tokenizer.ggml.tokens")
    if not n_tokens:
        raise UserError(
            f"{header.path} has no tokenizer",
            got="no tokenizer.ggml.tokens",
            mend="name the model that the file was made from, or take another conversion",
        )
    rows = next((one.shape[0] for one in header.tensors if one.name == "token_embd.weight"), 0)
    if n_tokens > rows:
        raise _contradiction(header, f"a tokenizer of {n_tokens} tokens", f"at most {rows}, the rows of its embedding")
    for name in SPECIAL:
        token = header.number(f"tokenizer.ggml.{name}_token_id")
        if token is not None and not 0 <= token < n_tokens:
            raise _contradiction(header, f"{name} token {token}", f"0 to {n_tokens - 1}")


def _placed(header: GgufHeader, parameters: Mapping[str, int]) -> set[str]:
    """Names of tensors that gguf's tables give to these parameters: enough to name one that has no place."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == header.architecture)
    table = get_tensor_name_map(arch, int(header.number(f"{header.architecture}.block_count") or 0))
    named = (parameter.rpartition(".") for parameter in parameters)
    return {f"{table.get_name(stem)}.{leaf}" for stem, _, leaf in named}


def _layer(name: str) -> int:
    """The layer of a tensor, whether the file names it or the model; -1 for those of none."""
    found = _LAYER.search(name)
    return int(found[1]) if found else -1


def _commit(path: Path) -> str | None:
    """Of a file in the hub's cache: `snapshots/COMMIT/FILE`."""
    found = re.search(r"snapshots/([0-9a-f]{40})/", path.as_posix())
    return found[1] if found else None


def _no_place(header: GgufHeader, names: list[str]) -> UserError:
    first = f", such as {quoted(names[0])}" if names else ""
    return UserError(
        f"{header.path} holds tensors that transformers has no place for",
        got=f"more weights than a {header.architecture} model has{first}",
        want="a model that is all there once loaded",
        mend="name the model that the file was made from",
    )


def _contradiction(header: GgufHeader, got: str, want: str) -> UserError:
    return UserError(f"{header.path} contradicts itself", got=got, want=want, mend=MEND)
