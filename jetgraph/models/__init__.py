"""The language models that come with the package, small enough to take apart whole.

Each is a folder that `transformers` loads; its README.md is the model card. `examples/train_demo_model.py` made them.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from jetgraph.errors import InputError


def bundled(name: str = "gpt2") -> Path:
    """Folder of a bundled model, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    Raises
    ------
    InputError
        An unknown name, and when the package was imported from an archive.

    >>> (bundled("llama") / "model.safetensors").is_file()
    True
    """
    root = resources.files(__name__)
    if not isinstance(root, Path):
        raise InputError(f"the bundled models need jetgraph installed in a folder, but it was imported from {root}")
    available = sorted(config.parent.name for config in root.glob("*/config.json"))
    if name not in available:
        raise InputError(f"no bundled model is called {name!r}: choose one of {', '.join(available)}")
    return root / name
