"""Checkpoints that transformers reads: folders and ids of the hub → models, with their tokenizers.

Loading is `transformers`' own. Which class a model is of is read from its config; nothing here knows an architecture.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from jetgraph.errors import JetGraphError, LoadError, MissingExtraError, quoted
from jetgraph.export.precision import own_types
from jetgraph.loading.lazy import lazy, refuse_packed, stored_weights
from jetgraph.loading.loaded import Loaded
from jetgraph.loading.quiet import CheckpointWarning, one_line, quiet
from jetgraph.loading.request import Options
from jetgraph.loading.tokenizers import tokenizer_of
from jetgraph.loading.unreadable import of_weights
from jetgraph.tracing.trace import canonical


@own_types()
def load_checkpoint(name: str, location: str, options: Options) -> Loaded:
    """The model of a checkpoint, called `name`; `location` is what `from_pretrained` reads.

    Raises
    ------
    LoadError
        As `load_model`.
    """
    import transformers

    with one_line(name):
        config = transformers.AutoConfig.from_pretrained(location, **options.source())
    classes = _model_classes(config, name, bool(options.trust_remote_code))
    tokenizer = tokenizer_of(location, options)
    if options.meta:
        with one_line(name), torch.device("meta"):
            model = _from_config(classes[0], config, options)
        return Loaded(name, model.eval(), tokenizer, meta=True, by_name=True)
    if options.weights is not None:
        refuse_packed(name, config)
        stored = stored_weights(name, location, options)
        model = _with_weights(name, None, classes, options, config=config, state_dict=stored)
        return lazy(Loaded(name, model, tokenizer, by_name=True))
    model = _with_weights(name, location, classes, options)
    with one_line(name):
        if options.peft is not None:
            model = _with_adapters(model, os.fspath(options.peft))
        if options.torch_device is not None:
            model = model.to(options.torch_device)
    return lazy(Loaded(name, model.eval(), tokenizer, by_name=True))


def _with_adapters(model: nn.Module, location: str) -> nn.Module:
    """The model with the weights of adapters added to its own."""
    try:
        import peft  # type: ignore[import-not-found]
    except ImportError:
        raise MissingExtraError("adapters need peft: pip install peft") from None
    with one_line(location):
        return peft.PeftModel.from_pretrained(model, location).merge_and_unload()


def _model_classes(config: Any, name: str, remote: bool) -> Sequence[Any]:
    """The class that the checkpoint names; where it names none of transformers', a fitting auto class, and the one
    without a head for checkpoints that have none.

    Raises `LoadError` for a config that says something else in place of names.
    """
    import transformers

    named = config.architectures or ()
    if not isinstance(named, list | tuple) or not all(isinstance(one, str) for one in named):
        raise LoadError(f"the config of {name} says architectures={quoted(named)}, which is no list of class names")
    for architecture in named:
        model_class = getattr(transformers, architecture, None)
        if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel):
            return [model_class]
    known = getattr(config, "auto_map", None) or {}
    coded = [getattr(transformers, auto, None) for auto in known if remote and auto.startswith("AutoModel")]
    if coded := [auto for auto in coded if auto is not None]:
        # The checkpoint's own code says which of its classes is for what.
        return sorted(coded, key=lambda auto: auto is transformers.AutoModel)
    candidates = (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForSeq2SeqLM,
        transformers.AutoModelForMaskedLM,
        transformers.AutoModelForImageClassification,
    )
    fitting = [auto for auto in candidates if type(config) in auto._model_mapping]
    return [*fitting[:1], transformers.AutoModel]


def _from_config(model_class: Any, config: Any, options: Options) -> nn.Module:
    auto = hasattr(model_class, "from_config")
    remote = bool(options.trust_remote_code)
    made = model_class.from_config(config, trust_remote_code=remote) if auto else model_class(config)
    return made if options.type is None else made.to(options.type)


def _with_weights(name: str, location: str | None, classes: Sequence[Any], options: Options, **given: Any) -> nn.Module:
    """The first of some classes whose output the checkpoint has all weights for; `given` are further arguments of
    `from_pretrained`.

    Raises `LoadError` where it is none: what a checkpoint lacks, transformers makes up at random.
    """
    lacking: list[str] = []
    for model_class in classes:
        with one_line(name, lambda: of_weights(location, options)):
            model, report = model_class.from_pretrained(
                location,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options.source(),
                **options.holding(),
                **given,
            )
        sizes = {
            key: f"{key} ({list(stored)} in the checkpoint, {list(made)} in the model)"
            for key, stored, made in report["mismatched_keys"]
        }
        absent = sorted({*report["missing_keys"], *sizes})
        if not (random := _read(lazy(Loaded(name, model.eval(), None)), absent)):
            if extra := sorted(report["unexpected_keys"]):
                left = f"{name} holds weights that {type(model).__name__} has not: {_few(extra)}"
                warnings.warn(left, CheckpointWarning, stacklevel=3)
            return model
        lacking = lacking or [sizes.get(key, key) for key in random]
    raise LoadError(
        f"the checkpoint {name} lacks weights that the model is computed with, or has them in another size: "
        f"{_few(lacking)}. Check that config.json is the one of these weights"
    )


def _few(names: Sequence[str]) -> str:
    """The first of some names, and how many there are."""
    return ", ".join(names[:3]) + (f", … ({len(names)} in all)" if len(names) > 3 else "")


def _read(loaded: Loaded, names: Collection[str]) -> list[str]:
    """Those weights that the model's output is computed from: a pooler that nothing reads may well be missing.

    All of them where the model cannot be traced on example inputs.
    """
    if not names:
        return []
    try:
        with quiet():
            traced = canonical(loaded.stand_in or loaded.model, kwargs=loaded.inputs(), dynamic=False)
    except JetGraphError:
        return list(names)
    used = {id(tensor) for tensor in traced.tensors.values()}
    state = dict((loaded.stand_in or loaded.model).state_dict(keep_vars=True))
    return [name for name in names if name not in state or id(state[name]) in used]
