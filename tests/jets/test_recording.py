"""What autograd and transforms ask of tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from jetgraph.jets.recording import is_followed, may_follow, recordable


@torch.no_grad()
def test_what_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, recorded = torch.ones(2), torch.ones(2, requires_grad=True)
    found = dict[str, tuple[bool, bool]]()

    def noting(name: str, tensor: Tensor) -> Tensor:
        found[name] = may_follow(), is_followed(tensor)
        return tensor.sin()

    noting("no grad", recorded)
    with torch.enable_grad():
        noting("grad", plain)
        noting("recorded", recorded)
    with forward_ad.dual_level():
        noting("level", plain)
        noting("tangent", forward_ad.make_dual(plain, plain))
    torch.vmap(lambda row: noting("batch", row))(plain)
    torch.func.jvp(lambda value: noting("jvp", value), (plain,), (plain,))
    make_fx(lambda value: noting("trace", value))(plain)
    with monkeypatch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        noting("compiler", plain)
    assert found == {
        "no grad": (False, False),
        "grad": (True, False),
        "recorded": (True, True),
        "level": (True, False),
        "tangent": (True, True),
        "batch": (True, False),
        "jvp": (True, True),
        "trace": (True, True),
        "compiler": (True, True),
    }


def test_what_was_made_in_inference_mode_may_be_saved() -> None:
    with torch.inference_mode():
        base = torch.arange(12.0).view(3, 4)
        made = {
            "shared": base[1:].mT,
            "sparse": torch.eye(2).to_sparse(),
            "conjugate": torch.tensor([1 + 2j]).conj(),
            "negative": torch.tensor([1 + 2j]).conj().imag,
        }
    scale = torch.ones((), requires_grad=True)
    for name, tensor in made.items():
        found = recordable(tensor)
        assert (name, found.is_inference(), found.layout) == (name, False, tensor.layout)
        assert torch.equal((scale * found).to_dense(), tensor.to_dense())
    found = recordable(made["shared"])
    assert (found.data_ptr(), found.stride()) == (made["shared"].data_ptr(), made["shared"].stride())
    assert recordable(scale) is scale
