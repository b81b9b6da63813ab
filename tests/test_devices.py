"""Nothing mixes devices: all rules, expansions and applications with everything on a device that only pretends.

`tests.pretend_device` does it in a process of its own; `tests.test_gpu` on a real device, where there is one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no backends in Python",
)


def test_nothing_mixes_devices() -> None:
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-m", "tests.pretend_device"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    failed = {name: why for name, why in found.items() if why is not None}
    assert not failed, "\n\n".join(f"{name}\n{why}" for name, why in failed.items())
    # The simulation itself, every rule, and both models took part.
    assert {"refusals", "rule add.Tensor", "gpt2: order 2", "llama: ablation", "spread: lens"} <= found.keys()
