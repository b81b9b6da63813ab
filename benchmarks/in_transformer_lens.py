"""Work that TransformerLens does, in an environment of its own: told line by line, and timed there.

Run by `elsewhere.Elsewhere` as a script, with the folder of a model that transformers has saved; it imports nothing of
jetgraph, nor of the benchmarks. Each line of its input is a piece of work in JSON, and each line of its output what
came of it: seconds, the most bytes that were held above what was held before, and values.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Do what is asked for until the input ends."""
    folder, threads = sys.argv[1:]
    # Libraries print what they like; the answers go where it does not.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import torch

    bridge = importlib.import_module("transformer_lens.model_bridge").TransformerBridge
    torch.set_num_threads(int(threads))
    torch.set_grad_enabled(False)
    model = bridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    # The names and the parts of HookedTransformer, with the weights as they are.
    model.enable_compatibility_mode(no_processing=True)
    for line in sys.stdin:
        asked = json.loads(line)
        work, ids = WORKS[asked["work"]], [torch.tensor(asked[name]) for name in ("ids", "other")]
        model(ids[0])
        gc.collect()
        before = _start_of_peak()
        started = time.perf_counter()
        values = work(model, *ids)
        seconds = time.perf_counter() - started
        found = {"seconds": seconds, "peak": max(0, _held("VmHWM") - before), "values": values.tolist()}
        print(json.dumps(found), file=answers, flush=True)


def attributed(model: Any, ids: Any, other: Any) -> Any:
    """What every head, MLP and embedding gives to the logits at the last position; their sum [logit]."""
    _, cache = model.run_with_cache(ids)
    components = cache.get_full_resid_decomposition(
        layer=-1, mlp_input=False, expand_neurons=False, apply_ln=True, pos_slice=-1
    )
    terms = components[:, 0] @ model.W_U
    return terms.sum(0) + model.b_U


def without_heads(model: Any, ids: Any, other: Any) -> Any:
    """Logits at the last position without each head, one by one; those of the first and the last head [head, logit]."""
    import torch

    found = []
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):

            def nothing(value: Any, hook: Any, head: int = head) -> Any:
                value[:, :, head] = 0
                return value

            found.append(model.run_with_hooks(ids, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", nothing)])[0, -1])
    return torch.stack([found[0], found[-1]])


def with_heads(model: Any, ids: Any, other: Any) -> Any:
    """The change of logit 0 at the last position with each head exchanged for another prompt's [layer, head]."""
    patching = importlib.import_module("transformer_lens.patching")
    own = model(ids)[0, -1, 0]
    _, cache = model.run_with_cache(other)
    changed = patching.get_act_patch_attn_head_out_all_pos(model, ids, cache, lambda logits: logits[0, -1, 0])
    return changed.cpu() - own


WORKS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "attributed": attributed,
    "without heads": without_heads,
    "with heads": with_heads,
}


def _start_of_peak() -> int:
    """Count the peak from here on, where the system can; what is held now."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")
    return _held("VmRSS")


def _held(name: str) -> int:
    status = Path("/proc/self/status")
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text(encoding="ascii")) if status.exists() else None
    return 0 if found is None else int(found[1]) * 1024


if __name__ == "__main__":
    main()
