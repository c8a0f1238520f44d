"""Load a chat model and its tokenizer from a hub id, a folder or a GGUF file.

The Hugging Face model is kept pristine: search, generation and PEFT use it. TransformerLens gets a twin that shares its
storage (`iconoclast_tl.models.twin`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iconoclast_tl.architecture.offloading import device_of, placement
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.stage_config import from_keywords
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.failures import first_line, loading_errors, not_loaded
from iconoclast_tl.models.gguf_model import GgufModel, open_gguf
from iconoclast_tl.models.model import Model, compute_on_stored_weights
from iconoclast_tl.models.source import base_of_adapter, require_causal, require_complete_folder
from iconoclast_tl.organisms.folder import shipped_folder

PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
"""What `device_map` may say besides a device."""
HARMLESS_BUFFERS = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)
"""Constants that old checkpoints store in every layer: rotary frequencies and causal masks, which models make anew."""


def load_model(
    model: str | ModelConfig = "organism",
    *,
    system: str | None = None,
    raw_prompts: bool = False,
    attention_only: bool = False,
    **settings: Any,
) -> Model:
    """Load a chat model by name: a hub id, a folder, a GGUF file, or `organism` for the one that is shipped.

    settings: those of `ModelConfig`, such as `dtype="bfloat16"`, `device="cuda:1"`, `quantization="4bit"`. The others
    are those of `Model`. A GGUF file (`FILE.gguf`, or `owner/name:FILE.gguf` on the hub) is dequantised to `dtype`.
    Tries the dtypes in turn until one gives finite logits. Raises `UserError` for an unknown setting, folder or hub id,
    a folder without weights or tokenizer, a GGUF file that transformers does not read or that contradicts itself, and a
    model that gives no finite logits in any dtype.
    """
    given = model if isinstance(model, ModelConfig) else None
    config = from_keywords(ModelConfig, given, settings if given else {"name": model, **settings})
    name, notes = local_name(config.name), list[str]()
    if base := base_of_adapter(name):
        notes.append(f"{name} is an adapter; this is its base, {base}, without it")
        name = base
    gguf = open_gguf(name, config)
    if gguf is None:
        require_complete_folder(name)
    device = _device(config)
    kind = load_config(name, config) if gguf is None else gguf.config
    require_causal(name, kind, config.quantization)
    # A GGUF file's tokenizer is told to be wrong before its weights are dequantised.
    tokenizer = None if gguf is None else gguf.tokenizer
    for dtype in _dtype_chain(config, device):
        hf = _load_weights(name, config, dtype, device, kind, gguf)
        if _gives_finite_logits(hf):
            tokenizer = tokenizer or _load_tokenizer(name, config)
            notes += [] if gguf is None else gguf.notes(dtype)
            return Model(
                hf,
                tokenizer,
                name=name,
                dtype=dtype,
                quantization=config.quantization,
                system=system,
                raw_prompts=raw_prompts,
                attention_only=attention_only,
                notes=tuple(notes),
            )
        notes.append(f"{dtype} gave NaN or infinity, first in {_first_not_finite(hf)}")
        del hf
    raise UserError(
        f"{name} gives values that are not finite",
        got="; ".join(notes),
        want="finite activations",
        mend="check its weights, or pass a wider --dtype",
    )


def local_name(name: str) -> str:
    """A model's name as transformers knows it: `organism` is a folder of the package, `~` the home."""
    if name == "organism":
        return str(shipped_folder())
    path = Path(name).expanduser()
    return str(path) if path.exists() else name


def _device(config: ModelConfig) -> str:
    if config.max_memory is not None and config.device_map is None:
        raise UserError(
            "model.max_memory says how `device_map` places a model", mend="pass --set model.device_map=auto"
        )
    if config.device_map not in (None, *PLACEMENTS):
        require_device(str(config.device_map))
    if config.device != "auto":
        require_device(config.device)
        return config.device
    return default_device()


def default_device() -> str:
    """What `auto` means: a GPU if there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def require_device(name: str) -> None:
    """Raise `UserError` for a device that this machine lacks, or that holds no models (`meta`), before weights load."""
    here = ["cpu"]
    if torch.cuda.is_available():
        here += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    if name not in here:
        raise UserError(f"there is no device {name}", want=f"one of auto, {', '.join(here)}")


def _dtype_chain(config: ModelConfig, device: str) -> list[str]:
    if config.dtype != "auto":
        return [config.dtype]
    # Half precision on CPU is slower than float32 and rounds for nothing.
    return ["float32"] if device == "cpu" else ["bfloat16", "float16", "float32"]


def load_config(name: str, config: ModelConfig) -> Any:
    """What config.json or a GGUF file's metadata says, as transformers reads it; `UserError` where it cannot."""
    from transformers import AutoConfig

    if (gguf := open_gguf(name, config)) is not None:
        return gguf.config
    try:
        return AutoConfig.from_pretrained(name, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except loading_errors() as error:
        raise not_loaded(name, error) from error


def _load_weights(
    name: str, config: ModelConfig, dtype: str, device: str, kind: Any, gguf: GgufModel | None = None
) -> Any:
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        **(placement(config.device_map, config.max_memory) if config.device_map else {"device_map": {"": device}}),
    }
    if gguf is not None:
        hf, found = gguf.weights(**options)
    else:
        hf, found = _load_stored(name, config, dtype, kind, options)
    _require_same_layers(name, hf, found, "config.json" if gguf is None else "metadata")
    if hf.config.architectures is None:  # TransformerLens chooses its adapter by it
        hf.config.architectures = [type(hf).__name__]
    compute_on_stored_weights(hf)
    hf.eval()
    return hf


def _load_stored(
    name: str, config: ModelConfig, dtype: str, kind: Any, options: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """The model of a folder or hub id, and what transformers says of how it was loaded."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Mxfp4Config

    options = {
        **options,
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "use_safetensors": True,
    }
    if config.quantization == "8bit":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif config.quantization == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
        )
    if getattr(kind, "quantization_config", None):  # of a format that can be undone: `require_causal`
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    try:
        hf, found = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **options)
    except loading_errors() as error:
        raise not_loaded(name, error) from error
    return hf, found


def _require_same_layers(name: str, hf: Any, found: Mapping[str, Any], asking: str) -> None:
    """The weights and what asks for them (config.json, or a GGUF file's metadata) must speak of the same layers.

    transformers fills missing weights with random numbers, and drops those of layers that the model does not have.
    """
    mend = f"check that {asking} and the weights are of one model"
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{name} lacks weights that its {asking} asks for",
            got=f"{len(missing)} missing, first {missing[0]}",
            want="weights of every layer",
            mend=mend,
        )
    if surplus := sorted(key for key in found["unexpected_keys"] if _is_of_a_layer(key, hf)):
        raise UserError(
            f"{name} holds weights that its {asking} has no place for",
            got=f"{len(surplus)} left over, first {surplus[0]}",
            want=f"weights of {hf.config.get_text_config().num_hidden_layers} layers",
            mend=mend,
        )


def _is_of_a_layer(key: str, hf: Any) -> bool:
    """Whether a name in the weights belongs to the decoder's layers (with or without the name of the model's base)."""
    n_layers = hf.config.get_text_config().num_hidden_layers
    lists = [
        path for path, module in hf.named_modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    starts = [f"{start}." for path in lists for start in (path, path.removeprefix(f"{hf.base_model_prefix}."))]
    return key.startswith(tuple(starts)) and not key.endswith(HARMLESS_BUFFERS)


def _load_tokenizer(name: str, config: ModelConfig) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            name, revision=config.revision, trust_remote_code=config.trust_remote_code, padding_side="left"
        )
    except loading_errors() as error:
        raise UserError(f"cannot load the tokenizer of {name}", got=first_line(error)) from error


def _gives_finite_logits(hf: Any) -> bool:
    with torch.no_grad():
        return bool(hf(input_ids=_probe(hf)).logits.isfinite().all())


def _first_not_finite(hf: Any) -> str:
    """Where the probe stops being finite: the embedding, a layer, or what comes after the layers."""
    with torch.no_grad():
        states = hf(input_ids=_probe(hf), output_hidden_states=True).hidden_states or ()
    # The embedding, then what each layer passes on.
    broken = (index for index, state in enumerate(states) if not bool(state.isfinite().all()))
    index = next(broken, None)
    if index is None:
        return "the logits"
    return f"layer {index - 1}" if index else "the embedding"


def _probe(hf: Any) -> Tensor:
    return torch.arange(1, 5, device=device_of(hf.get_input_embeddings()))[None]
