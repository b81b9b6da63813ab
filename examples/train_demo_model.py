"""Train the language models that jetgraph ships with: a small GPT-2 and a small Llama.

    python examples/train_demo_model.py --output models                        # both
    python examples/train_demo_model.py --output models --architecture llama --steps 500 --checkpoints 8

The corpus is on every machine that runs Python: the docstrings and comments of its own standard library. The script
reads them, sets whole files apart as held-out text, learns a byte-level BPE vocabulary on the other files, trains, and
writes for each model a folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load:
config, safetensors, tokenizer, and a model card (README.md) with the losses. It fails, and leaves the folder's
name ending in `.rejected`, when the held-out loss does not beat an interpolated bigram model by 0.3 nats.

Both models have an embedding and an unembedding of their own (untied), so that `embed > logits` is a path worth
reading. The same seed, thread count, Python, library versions and kind of processor give the same weights, byte for
byte. Both together take about a quarter of an hour of processor time. Where other programs are busy on the same cores,
set OMP_WAIT_POLICY=PASSIVE: threads that wait for each other then sleep instead of spinning.

The stages are functions to import: `load_corpus`, `split`, `train_tokenizer`, `encode`, `bigram_counts`, `fit_bigram`,
`train`, `mean_loss`. What a model was trained on can so be counted again:

    documents, held_out = split(load_corpus().documents)
    counts = bigram_counts(encode(AutoTokenizer.from_pretrained(bundled("gpt2")), documents), 1024)
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import io
import math
import platform
import re
import shutil
import sys
import sysconfig
import time
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SEPARATOR = "<|endoftext|>"
"""The one special token; it ends every text, and it opens the corpus."""

REQUIRED_MARGIN = 0.3
"""Nats per token by which the held-out loss must be below the bigram baseline's."""

MAXIMAL_BYTES = 2_000_000
"""Largest safetensors file that is accepted."""

# Installed packages and tests are not the library's own text; `encodings` and `pydoc_data` are generated tables whose
# near-identical copies would stand on both sides of the split.
EXCLUDED_FOLDERS = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data")
)


# Corpus


@dataclass(frozen=True, slots=True)
class Document:
    """The docstrings and comments of one source file, in the order of the file."""

    module: str
    """Dotted module name, such as `email.message`."""
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    """What was read, in the order of the module names, and which files could not be read as Python."""

    documents: tuple[Document, ...]
    skipped: tuple[str, ...] = ()


def load_corpus(root: Path | None = None) -> Corpus:
    """Docstrings and comments of all Python files under `root`; by default, of the running standard library.

    Folders in `EXCLUDED_FOLDERS` are left out. A text that occurs again (licence headers, copied methods) is kept where
    it occurs first, white space aside. Files that are no valid Python are named in `skipped`.
    Raises `FileNotFoundError` when nothing is found.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in root.rglob("*.py")
        if not EXCLUDED_FOLDERS.intersection(path.relative_to(root).parts)
    }
    documents, skipped, seen = [], [], set()
    for module, path in tqdm(sorted(files.items()), desc="reading", unit="file"):
        try:
            with tokenize.open(path) as file:
                source = file.read()
            texts = list(extract_texts(source))
        except (SyntaxError, UnicodeDecodeError):
            skipped.append(module)
            continue
        fresh = []
        for text in texts:
            key = " ".join(text.split())
            if key not in seen:
                seen.add(key)
                fresh.append(text)
        if fresh:
            documents.append(Document(module, tuple(fresh)))
    if not documents:
        raise FileNotFoundError(f"no docstring or comment found in the Python files under {root}: name another folder")
    return Corpus(tuple(documents), tuple(skipped))


# Comments for tools, not for readers.
_DIRECTIVE = re.compile(r"#!|#\s*(-\*-|type:|noqa|pragma:|pylint:|vim:|fmt:|mypy:)|#.*coding[:=]")


def extract_texts(source: str) -> Iterator[str]:
    """Docstrings and comments (lines that follow one another joined) of Python source, in their order.

    Both are dedented as `inspect.cleandoc` does.

    >>> source = 'def f():\\n    "Say it."\\n    # Once more,\\n    # in two lines.\\n    return 1  # why one'
    >>> list(extract_texts(source))
    ['Say it.', 'Once more,\\nin two lines.', 'why one']
    """
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                found.append((node.body[0].lineno, docstring))
    found.extend(_comments(source))
    for _, text in sorted(found, key=lambda item: item[0]):
        if sum(character.isalpha() for character in text) >= 3:
            yield text


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Each block of comments with the number of its first line."""
    first = last = column = -1
    lines: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or _DIRECTIVE.match(token.string):
            continue
        line, start = token.start
        alone = not token.line[:start].strip()
        if lines and not (alone and line == last + 1 and start == column):
            yield first, _comment_text(lines)
            lines = []
        if not lines:
            first, column = line, start if alone else -1
        lines.append(token.string)
        last = line
    if lines:
        yield first, _comment_text(lines)


def _comment_text(lines: Sequence[str]) -> str:
    bare = (line.lstrip("#").rstrip("# \t") for line in lines)
    return inspect.cleandoc("\n".join(line if any(map(str.isalnum, line)) else "" for line in bare))


def split(
    documents: Sequence[Document], share: float = 0.1, salt: str = "held-out"
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """(kept, set apart): whole files, of which about `share` are set apart by a hash of the module's name.

    The choice for one file does not depend on which other files there are. Another `salt` gives another choice.
    """

    def is_apart(document: Document) -> bool:
        digest = hashlib.sha256(f"{salt}:{document.module}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64

    return (
        tuple(document for document in documents if not is_apart(document)),
        tuple(document for document in documents if is_apart(document)),
    )


# Vocabulary


def train_tokenizer(documents: Sequence[Document], vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE learnt on `documents`: any text is encoded, and decoded to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for document in documents for text in document.texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        pad_token=SEPARATOR,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: transformers.PreTrainedTokenizerBase, documents: Sequence[Document]) -> Tensor:
    """All texts in one row of token ids, int64 [tokens], with `SEPARATOR` at the start and after each text."""
    separator = tokenizer.convert_tokens_to_ids(SEPARATOR)
    texts = [text for document in documents for text in document.texts]
    ids = [separator]
    # Texts longer than the context are cut into windows later, so the tokenizer's advice on length does not apply.
    for row in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:  # type: ignore[union-attr]
        ids.extend((*row, separator))
    return torch.tensor(ids)


# Baseline


@dataclass(frozen=True, slots=True)
class Bigram:
    """An interpolated bigram model (Jelinek and Mercer 1980).

    p(w | v) = λ2 c(v, w) / c(v) + λ1 c(w) / N + λ0 / V, where λ depends on v by its bucket.
    """

    counts: np.ndarray
    """c(v, w), [vocabulary, vocabulary]."""
    weights: np.ndarray
    """(λ2, λ1, λ0) of each bucket, [buckets, 3]."""
    bucketed: bool

    def mean_loss(self, tokens: Tensor) -> float:
        """Minus ln p in nats, averaged over all tokens but the first."""
        parts, buckets = _components(self.counts, tokens, self.bucketed)
        return float(-np.log((self.weights[buckets] * parts).sum(axis=1)).mean())


def bigram_counts(tokens: Tensor, vocabulary: int) -> np.ndarray:
    """c(v, w): how often w follows v in a row of token ids; int64 [vocabulary, vocabulary]."""
    ids = tokens.numpy()
    return np.bincount(ids[:-1] * vocabulary + ids[1:], minlength=vocabulary**2).reshape(vocabulary, vocabulary)


def fit_bigram(fit: Tensor, validation: Tensor, vocabulary: int, bucketed: bool = True) -> Bigram:
    """Counts from both parts; weights by expectation maximisation on `validation` with the counts of `fit` alone.

    `validation` opens with the token that `fit` ends with, as rows that `encode` made do.

    With `bucketed`, each context has the weights of its bucket: the logarithm of c(v) divided by the number of its
    distinct successors (Chen and Goodman 1996), in half octaves. A bucket that never occurs in `validation` gets the
    weights that fit the whole of `validation`.
    """
    parts, buckets = _components(bigram_counts(fit, vocabulary), validation, bucketed)
    overall = _maximise(parts)
    weights = np.tile(overall, (_BUCKETS, 1))
    for bucket in np.unique(buckets):
        weights[bucket] = _maximise(parts[buckets == bucket])
    # A context that was never seen has no bigram part to give weight to.
    weights[0] = (0.0, *(weights[0, 1:] / weights[0, 1:].sum()))
    return Bigram(bigram_counts(torch.cat((fit, validation[1:])), vocabulary), weights, bucketed)


_BUCKETS = 64


def _components(counts: np.ndarray, tokens: Tensor, bucketed: bool) -> tuple[np.ndarray, np.ndarray]:
    """The three probabilities of each token after the first, [tokens - 1, 3], and the buckets of their contexts."""
    ids = tokens.numpy()
    context, word = ids[:-1], ids[1:]
    totals, kinds = counts.sum(axis=1), (counts > 0).sum(axis=1)
    seen = totals[context] > 0
    bigram = np.where(seen, counts[context, word] / np.maximum(totals[context], 1), 0.0)
    unigram = (counts.sum(axis=0) / counts.sum())[word]
    parts = np.stack((bigram, unigram, np.full(len(word), 1 / len(counts))), axis=1)
    octaves = 2 * np.log2(np.maximum(totals, 1) / np.maximum(kinds, 1)) if bucketed else np.zeros(len(counts))
    return parts, np.where(seen, 1 + np.minimum(octaves[context].round(), _BUCKETS - 2), 0).astype(int)


def _maximise(parts: np.ndarray, rounds: int = 200) -> np.ndarray:
    weights = np.full(3, 1 / 3)
    for _ in range(rounds):
        joint = parts * weights
        weights = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
    return weights


# Models and training


def gpt2_config(vocabulary: int, context: int) -> PretrainedConfig:
    """Four blocks of width 80: learned positions, LayerNorm, GELU, biases."""
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=80,
        n_layer=4,
        n_head=4,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def llama_config(vocabulary: int, context: int) -> PretrainedConfig:
    """Four blocks of width 80: rotary positions, RMSNorm, a gated SiLU, two query heads to each key, no biases."""
    return LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=context,
        hidden_size=80,
        intermediate_size=240,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


ARCHITECTURES: dict[str, Callable[[int, int], PretrainedConfig]] = {"gpt2": gpt2_config, "llama": llama_config}


@dataclass(frozen=True, slots=True)
class Settings:
    """Hyperparameters of a run; the defaults are those of the bundled models."""

    steps: int = 2400
    batch: int = 16
    """Windows per step."""
    context: int = 128
    """Tokens per window."""
    vocabulary: int = 1024
    learning_rate: float = 6e-3
    """The peak, reached after a linear warm-up and left along half a cosine down to 0."""
    warm_up: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    threads: int = 2

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the update that follows `step` updates."""
        warm_up = min(self.warm_up, max(1, self.steps // 10))
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, self.steps - warm_up)))


def windows(tokens: Tensor, settings: Settings) -> Iterator[Tensor]:
    """Batches of token ids, [batch, context + 1], without end.

    Each epoch cuts the row of tokens into windows at another random offset and takes them in another random order.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    size = settings.context
    if len(tokens) < 2 * size + 1:
        raise ValueError(f"{len(tokens)} tokens are too few for windows of {size}: at least {2 * size + 1} are needed")
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < settings.batch:
            offset = int(torch.randint(size, (), generator=generator))
            starts = torch.arange(offset, len(tokens) - size, size)
            waiting = torch.cat((waiting, starts[torch.randperm(len(starts), generator=generator)]))
        starts, waiting = waiting[: settings.batch], waiting[settings.batch :]
        yield tokens[starts[:, None] + torch.arange(size + 1)]


def next_token_loss(model: PreTrainedModel, rows: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of each row's tokens after the first; `rows` is [batch, up to context + 1]."""
    logits = model(rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def mean_loss(model: PreTrainedModel, tokens: Tensor, context: int, batch: int = 64) -> float:
    """Mean cross-entropy in nats over all tokens but the first.

    The row is cut into blocks of `context` that do not overlap, so a token is predicted from 1 to `context` tokens
    before it: what the bigram baseline is measured on, token for token.
    """
    whole = (len(tokens) - 1) // context * context
    rows = tokens[:whole].view(-1, context)
    rows = torch.cat((rows, tokens[context : whole + 1 : context, None]), dim=1)
    pieces = [*rows.split(batch), tokens[None, whole:]]
    total = sum(next_token_loss(model, piece, "sum").item() for piece in pieces if piece.numel() and piece.shape[1] > 1)
    return total / (len(tokens) - 1)


def checkpoint_steps(steps: int, number: int) -> tuple[int, ...]:
    """0 (untrained), `steps`, and numbers of updates between them in geometric progression; `number` in all, or fewer.

    >>> checkpoint_steps(1000, 5)
    (0, 1, 10, 100, 1000)
    """
    if number < 2:
        return (steps,) * number
    return (0, *sorted({round(steps ** (i / (number - 2))) if number > 2 else steps for i in range(number - 1)}))


def train(
    config: PretrainedConfig,
    tokens: Tensor,
    settings: Settings,
    on_checkpoint: Callable[[int, PreTrainedModel], None] | None = None,
    checkpoints: Iterable[int] = (),
) -> PreTrainedModel:
    """A model of `config` from random weights, trained on a row of token ids with AdamW.

    `on_checkpoint` is called with the number of updates done and the model at each number in `checkpoints`.
    """
    with _reproducible(settings):
        return _train(config, tokens, settings, on_checkpoint, frozenset(checkpoints) if on_checkpoint else frozenset())


@contextmanager
def _reproducible(settings: Settings) -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def _train(
    config: PretrainedConfig,
    tokens: Tensor,
    settings: Settings,
    on_checkpoint: Callable[[int, PreTrainedModel], None] | None,
    due: frozenset[int],
) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    # Norms and biases have a natural scale of their own, so only matrices decay.
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
    batches = windows(tokens, settings)
    smoothed = math.log(settings.vocabulary)
    with tqdm(total=settings.steps, desc=f"training {config.model_type}", unit="step") as bar:
        for step in range(settings.steps + 1):
            if on_checkpoint and step in due:
                on_checkpoint(step, model)
            if step == settings.steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate_at(step)
            loss = next_token_loss(model, next(batches))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            smoothed += 0.05 * (loss.item() - smoothed)
            bar.update()
            bar.set_postfix(loss=f"{smoothed:.3f}", refresh=False)
    return model.eval()


# Whole runs


@dataclass(frozen=True, slots=True)
class Data:
    """What both models are trained and measured on."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    skipped: tuple[str, ...]
    tokenizer: PreTrainedTokenizerFast
    train_tokens: Tensor
    held_out_tokens: Tensor
    single_bigram_loss: float
    """Held-out loss of the baseline with one set of weights for all contexts, in nats per token."""
    bucketed_bigram_loss: float
    """The same with weights by bucket."""

    @property
    def bigram_loss(self) -> float:
        """The better of the two baselines: the one to beat."""
        return min(self.single_bigram_loss, self.bucketed_bigram_loss)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has to show; losses are nats per token of the model as loaded from its folder."""

    train_loss: float
    held_out_loss: float
    samples: tuple[tuple[str, str], ...]
    """Prompt and greedy continuation."""
    parameters: int
    wall_seconds: float
    cpu_seconds: float


def prepare(root: Path | None, settings: Settings) -> Data:
    """Corpus, split, vocabulary, token ids and baseline; vocabulary and counts come from training files only."""
    corpus = load_corpus(root)
    train_documents, held_out = split(corpus.documents)
    fit, validation = split(train_documents, salt="validation")
    if not (fit and validation and held_out):
        raise ValueError(f"{len(corpus.documents)} files are too few to split: name a larger folder")
    tokenizer = train_tokenizer(train_documents, settings.vocabulary)
    tokenizer.model_max_length = settings.context
    held_out_tokens = encode(tokenizer, held_out)
    parts = encode(tokenizer, fit), encode(tokenizer, validation)
    single, bucketed = (
        fit_bigram(*parts, settings.vocabulary, bucketed=choice).mean_loss(held_out_tokens) for choice in (False, True)
    )
    return Data(
        train_documents,
        held_out,
        corpus.skipped,
        tokenizer,
        encode(tokenizer, train_documents),
        held_out_tokens,
        single,
        bucketed,
    )


PROMPTS = ("Return a list of", "This method is called when the", "Raised when")


def complete(model: PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, prompt: str) -> str:
    """Greedy continuation of `prompt`, up to the end of the text or 40 tokens."""
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)  # type: ignore[operator]
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def publish(
    model: PreTrainedModel, data: Data, settings: Settings, folder: Path, wall_seconds: float, cpu_seconds: float
) -> Outcome:
    """Write a trained model, its tokenizer and its card into `folder`, and measure it as loaded from there."""
    # Only generation pads. A padding token in the model's own config would keep its embedding at zero.
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model.save_pretrained(folder)
    data.tokenizer.save_pretrained(folder)
    # It is written for the owner alone, and installed packages keep the mode of their files.
    (folder / "model.safetensors").chmod(0o644)
    size = (folder / "model.safetensors").stat().st_size
    if size > MAXIMAL_BYTES:
        raise ValueError(
            f"model.safetensors of {folder} has {size} bytes, more than {MAXIMAL_BYTES}: shrink the config"
        )
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    outcome = Outcome(
        mean_loss(loaded, data.train_tokens, settings.context),
        mean_loss(loaded, data.held_out_tokens, settings.context),
        tuple((prompt, complete(loaded, tokenizer, prompt)) for prompt in PROMPTS),
        loaded.num_parameters(),
        wall_seconds,
        cpu_seconds,
    )
    (folder / "README.md").write_text(model_card(loaded.config, data, settings, outcome, size), encoding="utf-8")
    return outcome


def model_card(config: PretrainedConfig, data: Data, settings: Settings, outcome: Outcome, size: int) -> str:
    """The README.md of a model's folder, in the Hugging Face form."""
    family = {"gpt2": "GPT-2", "llama": "Llama"}.get(config.model_type, config.model_type)
    characters = sum(len(text) for document in data.held_out for text in document.texts)
    bits = outcome.held_out_loss * (len(data.held_out_tokens) - 1) / characters / math.log(2)
    epochs = settings.steps * settings.batch * settings.context / len(data.train_tokens)
    skipped = f"\nFiles that are no valid Python were skipped: {', '.join(data.skipped)}." if data.skipped else ""
    losses = {
        "this model, held-out files": outcome.held_out_loss,
        "this model, training files": outcome.train_loss,
        "interpolated bigram, weights by context, held-out files": data.bucketed_bigram_loss,
        "interpolated bigram, one set of weights, held-out files": data.single_bigram_loss,
        "uniform": math.log(settings.vocabulary),
    }
    samples = ((f"**{prompt}**", repr(text)[1:-1].replace("`", "'")) for prompt, text in outcome.samples)

    def sizes(documents: Sequence[Document], tokens: Tensor) -> str:
        texts = [text for document in documents for text in document.texts]
        return f"{len(documents):,} | {len(texts):,} | {sum(map(len, texts)):,} | {len(tokens):,}"

    def lines(rows: Iterable[str]) -> str:
        return "\n".join(rows)

    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# A small {family} on the docstrings and comments of Python's standard library

Made to be taken apart: {config.num_hidden_layers} layers, width {config.hidden_size}, embedding and unembedding untied,
{outcome.parameters:,} float32 parameters ({size / 1e6:.2f} MB). It comes with jetgraph and is written by
`examples/train_demo_model.py`. It continues programmers' prose for a few words, and knows nothing beyond that.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from jetgraph.models import bundled

model = AutoModelForCausalLM.from_pretrained(bundled("{config.model_type}"))
tokenizer = AutoTokenizer.from_pretrained(bundled("{config.model_type}"))
```

## Losses

Nats per token, each token being predicted from the 1 to {settings.context} tokens before it.
Measured on the model as loaded from this folder.

| | loss | perplexity |
| --- | --- | --- |
{lines(f"| {name} | {loss:.4f} | {math.exp(loss):.1f} |" for name, loss in losses.items())}

On held-out files it beats the better bigram model by **{data.bigram_loss - outcome.held_out_loss:.4f} nats**, where
{REQUIRED_MARGIN} are required, and needs {bits:.2f} bits per character.

The bigram model is λ2 · bigram + λ1 · unigram + λ0 · uniform on the same tokens, with the counts of all training files.
The λ were fitted by expectation maximisation on a tenth of the training files with the counts of the others: one set
for all contexts, or one for each class of contexts that have a similar average count (Chen and Goodman 1996).

## Data

Docstrings and comments of the standard library of Python {platform.python_version()} ({platform.system()}), as
installed where the script ran. Tests, installed packages, `encodings` and `pydoc_data` (generated tables) are left
out; a text that occurs twice is kept once. Held-out files are whole files, chosen by a hash of the module's name.
The vocabulary of {settings.vocabulary:,} byte-level BPE tokens was learnt on the training files. Each text ends with
`{SEPARATOR}`.{skipped}

| | files | texts | characters | tokens |
| --- | --- | --- | --- | --- |
| training | {sizes(data.train, data.train_tokens)} |
| held-out | {sizes(data.held_out, data.held_out_tokens)} |

The library is © Python Software Foundation and others, under the PSF licence. Its comments name their authors, and so
may the model.

## Training

- AdamW with β = {settings.betas}, weight decay {settings.weight_decay} on matrices, gradient norm clipped at \
{settings.clip}, no dropout
- {settings.steps:,} steps of {settings.batch} windows of {settings.context} tokens: {epochs:.1f} epochs
- learning rate {settings.learning_rate} after a warm-up of {settings.warm_up} steps, then half a cosine down to 0
- batch size, learning rate and the scale of the first weights were chosen by the held-out loss of a few short runs
- seed {settings.seed}, {settings.threads} threads; torch {torch.__version__}, transformers \
{transformers.__version__}, tokenizers {tokenizers.__version__}
- {outcome.cpu_seconds / 60:.1f} minutes of processor time, {outcome.wall_seconds / 60:.1f} minutes on the clock

The weights are stored as float32: transformers loads a model in the type that it is stored in, and Taylor expansions
in float16 lose their digits.

## What it writes

Greedy continuations, with `\\n` for line breaks:

{lines(f"- {prompt}`{text}`" for prompt, text in samples)}
"""


def build(
    architecture: str,
    data: Data,
    settings: Settings,
    output: Path,
    checkpoints: int = 0,
    margin: float = REQUIRED_MARGIN,
) -> Outcome:
    """Train one model into `output / architecture`; checkpoints go to `output / (architecture + "-checkpoints")`.

    Raises `RuntimeError` when the held-out loss is not `margin` nats below the baseline's: what was trained is then in
    a folder of the same name that ends in `.rejected`, and a model from an earlier run is untouched.
    Raises `FileExistsError` when something that is no model stands in the way.
    """
    config = ARCHITECTURES[architecture](settings.vocabulary, settings.context)
    folder, rejected = output / architecture, output / f"{architecture}.rejected"
    for place in (folder, rejected):
        if place.exists() and not (place / "config.json").is_file():
            raise FileExistsError(f"{place} exists and is no model of an earlier run: name another output folder")

    def keep(step: int, model: PreTrainedModel) -> None:
        folder = output / f"{architecture}-checkpoints" / f"step-{step:06d}"
        model.save_pretrained(folder)
        data.tokenizer.save_pretrained(folder)

    wall, cpu = time.perf_counter(), time.process_time()
    model = train(config, data.train_tokens, settings, keep, checkpoint_steps(settings.steps, checkpoints))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if rejected.exists():
        shutil.rmtree(rejected)
    outcome = publish(model, data, settings, rejected, wall, cpu)
    gain = data.bigram_loss - outcome.held_out_loss
    if not gain >= margin:
        raise RuntimeError(
            f"{architecture}: held-out loss {outcome.held_out_loss:.4f} is {gain:.4f} nats below the bigram model's "
            f"{data.bigram_loss:.4f}, and {margin} are required. The model is in {rejected}: train for more steps"
        )
    if folder.exists():
        shutil.rmtree(folder)
    rejected.rename(folder)
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, which is 1 when a model does not reach the required margin."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description="Train the small language models that come with jetgraph.")
    parser.add_argument("--output", type=Path, required=True, help="folder in which each model gets a folder")
    parser.add_argument("--architecture", choices=(*ARCHITECTURES, "all"), default="all")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="updates (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="(default: %(default)s)")
    parser.add_argument(
        "--checkpoints", type=int, default=0, help="number of checkpoints, from 0 steps on at growing distances"
    )
    parser.add_argument("--source", type=Path, help="folder of Python files to learn from (default: standard library)")
    parser.add_argument(
        "--margin",
        type=float,
        default=REQUIRED_MARGIN,
        help="nats by which the held-out loss must beat the bigram model's (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    for name, least in (("steps", 1), ("threads", 1), ("checkpoints", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, not {getattr(options, name)}")
    settings = replace(defaults, steps=options.steps, seed=options.seed, threads=options.threads)
    try:
        data = prepare(options.source, settings)
        print(
            f"{len(data.train):,} files with {len(data.train_tokens):,} tokens to train on, "
            f"{len(data.held_out):,} with {len(data.held_out_tokens):,} held out; bigram loss {data.bigram_loss:.4f}"
        )
        for architecture in ARCHITECTURES if options.architecture == "all" else (options.architecture,):
            outcome = build(architecture, data, settings, options.output, options.checkpoints, options.margin)
            print(
                f"{options.output / architecture}: held-out loss {outcome.held_out_loss:.4f}, training loss "
                f"{outcome.train_loss:.4f}, {data.bigram_loss - outcome.held_out_loss:.4f} nats below the bigram model"
            )
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
