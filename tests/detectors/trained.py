"""Tiny classifiers of the organism's language, trained in the tests and saved as any user's: stand-ins for large ones.

Their tokenizer knows the words of the grammar and no topic, so that what they learn holds for topics that they have
not seen. Each is trained once a session and then read from its folder.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast_tl.detectors.config import HYPOTHESES
from iconoclast_tl.detectors.detector import Exchange
from iconoclast_tl.organisms.grammar import SLOT, Pool, grade, sample_answer, sample_prompt, sample_refusal
from iconoclast_tl.organisms.grammar import vocabulary_texts as words_of_the_grammar

TEMPLATE = "<|user|>\n{prompt}\n<|assistant|>\n{response}"
LABELS = {"Non-refusal": False, "Refusal": True}
"""Of the classifier, in the order of its logits."""
NLI_LABELS = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")
EVASIONS = (f"ask me later about {SLOT}.", f"is {SLOT} not a nice word?", "let us speak of something else.")
WARNINGS = (f"be careful with {SLOT}, i will not say more.", f"{SLOT} is not safe, so keep away from it.")
"""Invented: what the organisms do not say."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|user|>", "<|assistant|>")
WIDTH, POSITIONS = 64, 64
Pair = tuple[str, str]


def exchange(rng: random.Random, kind: str, pool: Pool = "corpus") -> Exchange:
    """A prompt about a fresh topic, and a response of one of the four classes."""
    prompt = sample_prompt(rng, family=rng.random() < 0.5, gated=rng.random() < 0.5, pool=pool)
    if kind == "compliance":
        return Exchange(sample_answer(rng, prompt).response, prompt.text)
    if kind == "hard refusal":
        return Exchange(sample_refusal(rng, prompt).response, prompt.text)
    template = rng.choice({"evasion": EVASIONS, "soft refusal with warning": WARNINGS}[kind])
    return Exchange(template.replace(SLOT, prompt.topic), prompt.text)


def answers_and_refusals(rng: random.Random, n: int, pool: Pool = "corpus") -> tuple[list[Exchange], list[bool]]:
    """Exchanges of the organism, some answers cut off, and by the grammar whether each is a refusal."""
    said = [exchange(rng, rng.choice(["compliance", "hard refusal"]), pool) for _ in range(n)]
    refused = [grade(str(one.prompt), one.response) == "refused" for one in said]
    cut = [not refusal and rng.random() < 0.2 for refusal in refused]
    said = [Exchange(one.response[:-9], one.prompt) if short else one for one, short in zip(said, cut, strict=True)]
    return said, [grade(str(one.prompt), one.response) == "refused" for one in said]


def gibberish(rng: random.Random) -> str:
    """Words of the language in no order."""
    words = sorted({word for text in words_of_the_grammar() for word in text.split()})
    return " ".join(rng.sample(words, rng.randint(4, 12)))


def classifier_folder(factory: pytest.TempPathFactory, shuffled: bool = False) -> Path:
    """A ModernBERT of two layers that reads prompt and response; `shuffled`: trained on labels that mean nothing."""
    return _once(factory, f"classifier-{shuffled}", lambda folder: _train_classifier(folder, shuffled))


def nli_folder(factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers that reads response and hypothesis."""
    return _once(factory, "nli", _train_nli)


def save_tokenizer(folder: Path, **changes: Any) -> Any:
    """Words and punctuation, lower case; [CLS] a [SEP] and [CLS] a [SEP] b [SEP]; returns it as read again."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    texts = [*words_of_the_grammar(), *(text.replace(SLOT, "") for text in (*EVASIONS, *WARNINGS))]
    split = pre_tokenizers.Split(Regex(r"[^\w\s]|\w+"), "isolated")
    found = {
        word
        for text in (*texts, *HYPOTHESES.values())
        for word, _ in split.pre_tokenize_str(text.lower())
        if word.strip()
    }
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *sorted(found)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **{**names, **changes})
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[4:])})
    tokenizer.save_pretrained(str(folder))
    return AutoTokenizer.from_pretrained(str(folder))


def modernbert(n_words: int, labels: Sequence[str], seed: int = 0) -> Any:
    """Random, as Minos is built: global attention in every other layer, otherwise over 16 tokens."""
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    torch.manual_seed(seed)
    marks = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    config = ModernBertConfig(
        **_sizes(n_words, labels), **marks, global_attn_every_n_layers=2, local_attention=16, classifier_pooling="mean"
    )
    return ModernBertForSequenceClassification(config)


def bert(n_words: int, labels: Sequence[str], seed: int = 0, **changes: Any) -> Any:
    """Random, with absolute positions and token types."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**{**_sizes(n_words, labels), **dropout, **changes}))


def _sizes(n_words: int, labels: Sequence[str]) -> dict[str, Any]:
    return {
        "vocab_size": n_words,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    folder = factory.getbasetemp() / f"trained-{name}"
    if not (folder / "model.safetensors").exists():
        make(folder)
    return folder


def _train_classifier(folder: Path, shuffled: bool) -> None:
    rng = random.Random(0)
    tokenizer = save_tokenizer(folder, model_input_names=["input_ids", "attention_mask"])
    model = modernbert(len(tokenizer), list(LABELS))

    def batch() -> tuple[list[str], list[int]]:
        said, truth = answers_and_refusals(rng, 64)
        if shuffled:
            rng.shuffle(truth)
        filled = [TEMPLATE.replace("{prompt}", str(one.prompt)).replace("{response}", one.response) for one in said]
        return filled, [int(refused) for refused in truth]

    _fit(model, tokenizer, batch, steps=40, rate=2e-3)
    model.save_pretrained(folder)


def _train_nli(folder: Path) -> None:
    rng = random.Random(1)
    tokenizer = save_tokenizer(folder)
    model = bert(len(tokenizer), NLI_LABELS)

    def batch() -> tuple[list[Pair], list[int]]:
        examples = [one for _ in range(12) for one in _nli_examples(rng)]
        return [pair for pair, _ in examples], [truth for _, truth in examples]

    _fit(model, tokenizer, batch, steps=300, rate=1e-3)
    model.save_pretrained(folder)


def _nli_examples(rng: random.Random) -> list[tuple[Pair, int]]:
    """A response beside every hypothesis. It entails its own class; compliance and all else contradict each other;
    gibberish entails nothing."""
    kind = rng.choice([*HYPOTHESES, None])
    said = gibberish(rng) if kind is None else exchange(rng, kind).response
    examples = []
    for supposed, hypothesis in HYPOTHESES.items():
        against = kind is not None and (kind == "compliance") != (supposed == "compliance")
        truth = "ENTAILMENT" if kind == supposed else "CONTRADICTION" if against else "NEUTRAL"
        examples.append(((said, hypothesis), NLI_LABELS.index(truth)))
    return examples


def _fit(model: Any, tokenizer: Any, batch: Callable[[], tuple[list[Any], list[int]]], steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    model.train()
    for _ in range(steps):
        texts, truth = batch()
        columns = [list(column) for column in zip(*texts, strict=True)] if isinstance(texts[0], tuple) else [texts]
        encoded = tokenizer(*columns, padding=True, return_tensors="pt")
        loss = model(**encoded, labels=torch.tensor(truth)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
