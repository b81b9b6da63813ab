"""A graph says where it is no longer what its model's code does; what changes nothing passes."""

from __future__ import annotations

import copy
import functools
import re
import sys
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

import jetgraph as jg
from tests import zoo

X = torch.linspace(-1, 2, 12).view(3, 4)


class Settings:
    """As a config is."""

    def __init__(self) -> None:
        self.scale, self.title, self.layers, self.table = 0.5, "a net", 2, {"shift": 0.25}
        self.cached, self.kind = True, "plain"


def halved(x: Tensor) -> Tensor:
    return x / 2


def scaled(by: float) -> Callable[[Tensor], Tensor]:
    return lambda x: by * x


class Block(nn.Module):
    """Reads what is its own in many ways, and keeps what it has seen."""

    slope = 1.5

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.norm, self.linear, self.act = nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()
        self.settings, self.gate, self.gates = settings, scaled(0.5), (0.5, 0.25)
        self.bent = functools.partial(F.leaky_relu, negative_slope=0.25)
        self.calls, self.longest, self.seen = 0, 0, {"shapes": [0]}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen["shapes"].append(len(x))
        if len(x) > 5:
            self.longest = max(self.longest, len(x))
        y = self.act(self.linear(self.norm(x))) * self.settings.scale + self.settings.table["shift"]
        y = self.bent(self.gate(halved(self._sloped(y)))) * self.gates[0]
        return x + (y + self.longest * 0 if self.settings.cached else y) * getattr(self, "strength", 1.0)

    def _sloped(self, x: Tensor) -> Tensor:
        return self.slope * x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Settings()
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(2))
        self.note = 1
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks[: self.config.layers]:
            x = block(x)
        return x


@pytest.fixture(scope="module")
def pristine() -> tuple[Net, jg.ResidualGraph]:
    torch.manual_seed(0)
    net = Net()
    return net, jg.trace(net, X)


@pytest.fixture
def pair(pristine: tuple[Net, jg.ResidualGraph]) -> tuple[Net, jg.ResidualGraph]:
    return copy.deepcopy(pristine)


class Ten(nn.GELU):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * x


def _twice(module: nn.Module, given: Any, output: Tensor) -> Tensor:
    return 2 * output


def _first(net: Net) -> Any:
    return net.blocks[0]


def _hooked(net: Net) -> None:
    """By accelerate's means, which puts a `forward` in the place of the module's."""
    hooks = pytest.importorskip("accelerate.hooks")

    class Mine(hooks.ModelHook):
        def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
            return 2 * output

    hooks.add_hook_to_module(_first(net), Mine())


def _aligned(net: Net) -> None:
    """As accelerate does of a model that it has laid on devices."""
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(_first(net), hooks.AlignDevicesHook("cpu"))


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an activation": (lambda net: setattr(_first(net), "act", nn.ReLU().eval()), "of module 'blocks.0.act' (GELU)"),
    "a class of it": (lambda net: setattr(_first(net), "act", Ten().eval()), "GELU in the trace, Ten now"),
    "an option": (lambda net: setattr(_first(net).act, "approximate", "tanh"), "'none' in the trace, 'tanh' now"),
    "an ε": (lambda net: setattr(_first(net).norm, "eps", 1e-3), "eps of module 'blocks.0.norm' (LayerNorm): 1e-05"),
    "a setting": (lambda net: setattr(net.config, "scale", 0.75), "config.scale of the model (Net): 0.5 in the trace"),
    "a setting within": (lambda net: net.config.table.update(shift=0.5), "config.table['shift'] of the model (Net)"),
    "a depth": (lambda net: setattr(net.config, "layers", 1), "config.layers"),
    "a function": (lambda net: setattr(_first(net), "gate", torch.relu), "gate of module 'blocks.0' (Block)"),
    "a variable of it": (lambda net: setattr(_first(net), "gate", scaled(0.75)), "gate of module 'blocks.0' (Block)"),
    "a bound argument": (
        lambda net: setattr(_first(net), "bent", functools.partial(F.leaky_relu, negative_slope=0.5)),
        "bent of module 'blocks.0'",
    ),
    "a tuple": (lambda net: setattr(_first(net), "gates", (0.75, 0.25)), "0.5, 0.25 in the trace, 0.75, 0.25 now"),
    "what was not there": (lambda net: setattr(_first(net), "strength", 2.0), "strength of module 'blocks.0' (Block)"),
    "a value over the class's": (lambda net: setattr(_first(net), "slope", 2.0), "slope of module 'blocks.0' (Block)"),
    "a hook": (lambda net: _first(net).register_forward_hook(_twice), "forward hooks of module 'blocks.0' (Block)"),
    "a hook before": (
        lambda net: _first(net).act.register_forward_pre_hook(lambda module, given: (2 * given[0],)),
        "forward pre-hooks of module 'blocks.0.act' (GELU)",
    ),
    "a forward": (
        lambda net: setattr(_first(net), "forward", MethodType(lambda self, x: 2 * x, _first(net))),
        "forward of module 'blocks.0' (Block): nothing in the trace",
    ),
    "a hook of accelerate's kind": (_hooked, "Mine now"),
    "a block more": (lambda net: net.blocks.append(Block(net.config).eval()), "of module 'blocks' (ModuleList)"),
    "a block before": (
        lambda net: setattr(net, "blocks", nn.ModuleList([nn.Identity(), *net.blocks]).eval()),
        "submodules of module 'blocks' (ModuleList): '0', '1' in the trace, '0', '1', '2' now",
    ),
    "pruning": (lambda net: prune.l1_unstructured(_first(net).linear, "weight", 0.5), "a L1Unstructured now"),
}  # fmt: skip
"""What a user does, and what the graph says of it."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_refuses_to_replay_what_the_code_no_longer_does(
    change: str, pair: tuple[Net, jg.ResidualGraph]
) -> None:
    net, graph = pair
    expansion = jg.expand(graph, recipe="components")
    CHANGES[change][0](net)
    for use in (lambda: graph(X), lambda: graph.run(X), graph.current, lambda: jg.compile(expansion),
                lambda: jg.ablate(graph, "L0 > *", X)):  # fmt: skip
        with pytest.raises(jg.StateError, match=re.escape(CHANGES[change][1])):
            use()


def test_a_graph_that_is_traced_again_computes_what_the_code_does_now(pair: tuple[Net, jg.ResidualGraph]) -> None:
    net, graph = pair
    for change in ("an activation", "a tuple", "a hook", "a block more"):
        CHANGES[change][0](net)
    again = jg.trace(net, X)
    assert torch.allclose(again(X), net(X), atol=1e-6)
    with pytest.raises(jg.StateError):
        graph(X)


def test_compiled_paths_keep_the_code_that_they_were_compiled_with(pair: tuple[Net, jg.ResidualGraph]) -> None:
    net, graph = pair
    module, before = jg.compile(jg.expand(graph, recipe="components")), graph(X)
    net.blocks[0].norm.eps = 1e-3
    assert torch.equal(module(X).output, before)


def test_what_is_put_back_is_as_before(pair: tuple[Net, jg.ResidualGraph]) -> None:
    net, graph = pair
    handle = net.blocks[0].register_forward_hook(_twice)
    net.config.scale = 1.0
    with pytest.raises(jg.StateError, match=r"trace, 1\.0 now, among others\)"):
        graph(X)
    handle.remove()
    with pytest.raises(jg.StateError, match=r"scale"):
        graph(X)
    net.config.scale = 0.5
    assert torch.equal(graph(X), net(X))


def _class_method(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Block, "_sloped", lambda self, x: x)


def _class_value(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Block, "slope", 2.5)


def _code_of_a_method(patch: pytest.MonkeyPatch) -> None:
    """As a reloaded file does."""
    patch.setattr(Block._sloped, "__code__", (lambda self, x: x).__code__)


def _function_of_a_file(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(globals(), "halved", lambda x: x)


def _method_of_torchs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(nn.GELU, "forward", lambda self, x: x)


@pytest.mark.parametrize(
    "change", [_class_method, _class_value, _code_of_a_method, _function_of_a_file, _method_of_torchs]
)
def test_what_a_class_or_file_has_is_seen(
    change: Callable[[pytest.MonkeyPatch], None], pair: tuple[Net, jg.ResidualGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, graph = pair
    with monkeypatch.context() as patch:
        change(patch)
        with pytest.raises(jg.StateError, match=r"_sloped|slope|halved|forward of class GELU"):
            graph(X)
    assert torch.equal(graph(X), net(X))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _add_a_probe(net: Any) -> None:
    net.probe = nn.Linear(4, 4)


def _train(net: Any) -> None:
    """And a switch as well, which is looked at in evaluation mode."""
    net.train()
    net.config.cached = False


def _compile(net: Any) -> None:
    torch.compile(net, backend="eager")(X)
    net.compile(backend="eager")
    net(X)


HARMLESS: dict[str, Callable[[Any], Any]] = {
    "a forward pass": lambda net: net(X),
    "a longer one": lambda net: net(torch.randn(9, 4)),
    "nobody's setting": lambda net: (setattr(net.config, "title", "another"), setattr(net, "note", 2)),
    "a switch": lambda net: setattr(net.config, "cached", False),
    "training": _train,
    "gradients": lambda net: net.requires_grad_(),
    "a type": lambda net: net.double().float(),
    "a hook on gradients": lambda net: net.blocks[0].register_full_backward_hook(lambda *_: None),
    "a hook on state": lambda net: net.register_state_dict_post_hook(lambda *_: None),
    "accelerate": _aligned,
    "compiling": _compile,
    "other weights": lambda net: net.load_state_dict({name: 2 * each for name, each in net.state_dict().items()}),
    "other tensors": lambda net: net.load_state_dict(copy.deepcopy(Net().state_dict()), assign=True),
    "a module of its kind": lambda net: net.blocks.__setitem__(1, copy.deepcopy(net.blocks[0])),
    "one module twice": lambda net: net.blocks.__setitem__(1, net.blocks[0]),
    "weights for one call": lambda net: torch.func.functional_call(
        net, {name: 2 * each for name, each in net.named_parameters()}, (X,)
    ),
    "a parametrization": lambda net: parametrize.register_parametrization(net.blocks[0].linear, "weight", Doubled()),
    "a normed weight": lambda net: parametrizations.weight_norm(net.blocks[0].linear),
    "an equal config": lambda net: setattr(net, "config", copy.deepcopy(net.config)),
    "a probe": _add_a_probe,
    "a method of its own": lambda net: setattr(net.blocks[0], "forward", MethodType(Block.forward, net.blocks[0])),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_what_changes_nothing_passes(change: str, pair: tuple[Net, jg.ResidualGraph]) -> None:
    net, graph = pair
    for _ in range(2):
        HARMLESS[change](net)
        mode = [module.training for module in net.modules()]
        found = graph(X)
        assert mode == [module.training for module in net.modules()]
        assert torch.allclose(found, net.eval()(X), rtol=0, atol=1e-6)
        if change in ("a hook on gradients", "a parametrization", "a normed weight", "compiling", "accelerate"):
            break


def test_a_file_that_is_unloaded_has_not_changed(
    pair: tuple[Net, jg.ResidualGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, graph = pair
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, __name__)
        assert torch.equal(graph(X), net(X))
        # Looked at in full.
        net.more = 1
        assert torch.equal(graph(X), net(X))
    assert torch.equal(graph(X), net(X))


def test_operators_can_be_counted(pair: tuple[Net, jg.ResidualGraph]) -> None:
    """torch hangs a hook on all modules for that."""
    net, graph = pair
    with FlopCounterMode(display=False):
        assert torch.equal(graph(X), net(X))


def test_a_hook_of_all_modules_is_seen(pair: tuple[Net, jg.ResidualGraph]) -> None:
    net, graph = pair
    handle = register_module_forward_hook(_twice)
    try:
        with pytest.raises(jg.StateError, match="forward hooks of all modules: none in the trace, _twice now"):
            graph(X)
    finally:
        handle.remove()
    assert torch.equal(graph(X), net(X))


def test_a_hook_may_record() -> None:
    """One that was there in the trace is part of the code, and what it keeps is not."""
    net, kept, number = Net(), list[Tensor](), 0

    def count(module: nn.Module, given: Any, output: Tensor) -> None:
        nonlocal number
        number += 1
        kept.append(output)

    net.blocks[0].register_forward_hook(count)
    graph = jg.trace(net, X)
    recorded = len(kept)
    assert torch.equal(graph(X), net(X))
    assert torch.equal(graph(X), net(X))
    assert (number, len(kept)) == (recorded + 2, recorded + 2)


def test_a_hook_is_not_run_to_look_what_it_does(pair: tuple[Net, jg.ResidualGraph]) -> None:
    net, graph = pair
    seen = list[Tensor]()
    net.blocks[0].register_forward_hook(lambda module, given, output: seen.append(output))
    with pytest.raises(jg.StateError, match="forward hooks"):
        graph(X)
    assert not seen
    assert torch.equal(graph.over(net)(X), net(X))


def test_a_graph_over_the_model_takes_it_as_it_is(pair: tuple[Net, jg.ResidualGraph]) -> None:
    net, graph = pair
    net.blocks[0].norm.eps = 2e-5
    over = graph.over(net)
    assert torch.equal(over(X), graph.over(net)(X))
    net.blocks[0].norm.eps = 1e-5
    with pytest.raises(jg.StateError, match="2e-05 in the trace, 1e-05 now"):
        over(X)


def test_a_model_that_is_gone_has_not_changed(pristine: tuple[Net, jg.ResidualGraph]) -> None:
    net, graph = copy.deepcopy(pristine)
    net.blocks[0].norm.eps = 1.0
    del net
    assert torch.equal(graph(X), pristine[1](X))


def test_what_functions_read_is_seen() -> None:
    one, other = Net(), Net()
    graph = jg.trace(lambda x: x + one(x) + other(x), X)
    graph(X)
    other.blocks[1].norm.eps = 1e-3
    with pytest.raises(jg.StateError, match="eps of module"):
        graph(X)


def test_under_a_profiler_everything_counts(pair: tuple[Net, jg.ResidualGraph]) -> None:
    import cProfile

    net = pair[0]
    with cProfile.Profile():
        graph = jg.trace(net, X)
    assert torch.equal(graph(X), net(X))
    assert torch.equal(graph(X), net(X))
    net.note = 2
    with pytest.raises(jg.StateError, match=r"note of the model \(Net\): 1 in the trace, 2 now"):
        graph(X)


@pytest.fixture(scope="module")
def llama() -> tuple[Any, dict[str, Any], jg.ResidualGraph]:
    case = zoo.case("llama")
    model, inputs = case.build("sdpa"), case.inputs()
    return model, inputs, jg.trace(model, **inputs, dynamic=False)


TRANSFORMERS: dict[str, Callable[[Any, Any], Any]] = {
    "generate": lambda model, ids: model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0),
    "hidden states": lambda model, ids: model(ids, output_hidden_states=True),
    "a padding token": lambda model, ids: setattr(model.config, "pad_token_id", 1),
    "a cache": lambda model, ids: setattr(model.config, "use_cache", not model.config.use_cache),
    "states": lambda model, ids: setattr(model.config, "output_hidden_states", True),
    "attention": lambda model, ids: model.set_attn_implementation("eager"),
    "checkpoints": lambda model, ids: model.gradient_checkpointing_enable(),
    "inputs' gradients": lambda model, ids: model.enable_input_require_grads(),
    "a longer text": lambda model, ids: model(ids.repeat(1, 4)),
}


@pytest.mark.parametrize("change", TRANSFORMERS)
def test_what_transformers_does_passes(change: str, llama: tuple[Any, dict[str, Any], jg.ResidualGraph]) -> None:
    model, graph = copy.deepcopy((llama[0], llama[2]))
    with torch.no_grad():
        TRANSFORMERS[change](model, llama[1]["input_ids"])
        assert torch.allclose(graph(**llama[1]), model(**llama[1]).logits, atol=1e-6)
        graph(**llama[1])


def test_what_transformers_computes_otherwise_does_not(llama: tuple[Any, dict[str, Any], jg.ResidualGraph]) -> None:
    model, graph = copy.deepcopy((llama[0], llama[2]))
    # Its code sets this for one call, and puts it back.
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(jg.StateError, match=r"is_causal of module 'model\.layers\.0\.self_attn'"):
        graph(**llama[1])
