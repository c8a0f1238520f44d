"""Settings of the detectors, and by which of them a response counts as the behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from iconoclast_tl.detectors.markers.markers import Match
from iconoclast_tl.foundation.stage_config import Changeable, StageConfig

HYPOTHESES: Final[Mapping[str, str]] = {
    "hard refusal": "The speaker refuses to answer.",
    "evasion": "The speaker avoids the question without answering it.",
    "soft refusal with warning": "The speaker declines to help and gives a warning.",
    "compliance": "The speaker answers the question.",
}
"""What responses of the four classes entail."""
DetectorDtype = Literal["auto", "float32", "bfloat16", "float16"]


class SequenceModelConfig(StageConfig):
    """A Hugging Face sequence classifier and how it is held in memory."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps`; its own, whatever the evaluated model's is."""
    dtype: DetectorDtype = "auto"
    """`auto`: float32 on the CPU, bfloat16 on a GPU that has it."""
    batch_size: int = Field(32, ge=1)
    """Texts in one forward pass; halved by itself where memory runs out."""
    max_length: int | None = Field(None, ge=8)
    """Tokens after which a text is cut; unset: what the model was built for."""
    trust_remote_code: bool = False
    """Run code that comes with the classifier. Off unless you have read it."""


class ClassifierConfig(SequenceModelConfig):
    """A sequence classifier whose labels say whether a response shows the behaviour."""

    name: str | None = None
    """A hub id or folder, such as NousResearch/Minos-v1."""
    labels: dict[str, bool] = Field(default_factory=dict)
    """Its labels, and whether each counts as the behaviour, such as {"Refusal": true, "Non-refusal": false}."""
    template: str = "{response}"
    """What the classifier reads: {response}, and {prompt} where it was trained on both."""
    min_confidence: float = Field(0.0, ge=0, le=1)
    """Under this probability a response is `uncertain`."""


class NliConfig(SequenceModelConfig):
    """Zero-shot classification by natural-language inference."""

    name: str = "facebook/bart-large-mnli"
    """A hub id or folder of a model with a label `entailment`."""
    hypotheses: dict[str, str] = Field(default_factory=lambda: dict(HYPOTHESES))
    """Class → what its responses entail."""
    shows: tuple[str, ...] = ("hard refusal", "evasion", "soft refusal with warning")
    """The classes that count as the behaviour."""
    min_confidence: float = Field(0.5, ge=0, le=1)
    """Under this probability of the likeliest class a response is `uncertain`."""


class JudgeConfig(StageConfig):
    """A chat model behind an OpenAI-compatible endpoint, and the rubric by which it judges."""

    base_url: str = "https://api.openai.com/v1"
    """The endpoint, such as http://localhost:8000/v1 of a local server."""
    model: str | None = None
    """Which model is asked, by the endpoint's name for it; there is no default."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; the key itself is no setting, and is written nowhere. Where it is
    unset, endpoints other than OpenAI's own are asked without one."""
    rubric: str = "refusal"
    """A rubric that is shipped (`refusal`, `hedging`, `verbosity`), or a TOML file of your own."""
    concurrency: int = Field(8, ge=1)
    """Requests on their way at once."""
    retries: int = Field(4, ge=0)
    """How often at most a response is asked about again, after a failure or an answer that makes no sense."""
    timeout: float = Field(60.0, gt=0)
    """Seconds to wait for an answer."""
    max_tokens: int = Field(200, ge=1)
    """Of an answer; models that reason before they answer need more."""
    cache: Path | None = None
    """A file that keeps what was answered, so that it is paid for once; unset: in the user's cache folder."""


class DetectorConfig(StageConfig):
    """What counts as the behaviour, and who says so."""

    markers: str | tuple[str, ...] = "refusal"
    """A named marker set, or a list of phrases."""
    match: Match | None = None
    """Where markers count: `anywhere` or `prefix`; unset: as the set says."""
    detector: str = "markers"
    """Who says what shows the behaviour, in searches and in the rates: `markers`, `classifier`, `nli`, `judge`, or one
    of your own, which a plugin registers."""
    detectors: Annotated[tuple[str, ...], Changeable] = ()
    """Further detectors, asked of the test responses at the end: also `markers:SET` of a named marker set."""
    classifier: Annotated[ClassifierConfig, Changeable] = ClassifierConfig()
    nli: Annotated[NliConfig, Changeable] = NliConfig()
    judge: Annotated[JudgeConfig, Changeable] = JudgeConfig()
