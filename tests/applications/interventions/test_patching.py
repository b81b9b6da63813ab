"""Reading and replacing components in a forward pass, against hooks on the model's own modules."""

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from tests.conftest import run
from tests.zoo import case


def output_replaced(model: nn.Module, path: str, change, inputs) -> Tensor:
    """The model's output where a module's result goes through `change`."""

    def hook(module, args, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = model.get_submodule(path).register_forward_hook(hook)
    result = run(model, inputs)
    handle.remove()
    return result


@pytest.mark.parametrize(
    ("name", "alias", "path"),
    [
        ("gpt2", "L0.attn", "transformer.h.0.attn"),
        ("llama", "L1.mlp", "model.layers.1.mlp"),
        ("gptj", "L0.mlp", "transformer.h.0.mlp"),
        ("falcon", "L1.attn", "transformer.h.1.self_attention"),
        ("gemma2", "L0.mlp", "model.layers.0.post_feedforward_layernorm"),
        ("t5", "decoder.L0.attn", "decoder.block.0.layer.0.SelfAttention"),
    ],
)
def test_a_branch_is_what_its_module_returns(name, alias, path, traced):
    example = traced(case(name))
    inputs = example.case.inputs()
    seen: list[Tensor] = []
    expected = output_replaced(example.model, path, lambda value: seen.append(value) or 0.5 * value, inputs)
    aliases = example.graph.branches
    alias = alias if alias in aliases else alias.removeprefix("decoder.")
    forward = example.graph.run(**inputs)
    with torch.no_grad():
        assert_close(forward.output, example.output)
        value = forward.component(alias)
        assert_close(value.reshape(seen[0].shape), seen[0])
        forward.patch(alias, 0.5 * value)
        assert_close(forward.output, expected)
        assert not torch.allclose(forward.output, example.output, atol=1e-3)
        forward.patch(alias, value)
        assert_close(forward.output, example.output)


def test_sources_of_the_encoder(traced):
    example = traced(case("gpt2"))
    inputs = example.case.inputs()
    with torch.no_grad():
        forward = example.graph.run(**inputs)
        assert_close(forward.component("embed"), example.model.transformer.wte(inputs["input_ids"]))
        assert_close(forward.component("pos")[0], example.model.transformer.wpe.weight[:7])
        forward.patch("pos", torch.zeros_like(forward.component("pos")))
        expected = output_replaced(example.model, "transformer.wpe", torch.zeros_like, inputs)
        assert_close(forward.output, expected)
        forward.patch("embed", 2 * forward.component("embed"))
        assert_close(forward.point(0), 2 * example.model.transformer.wte(inputs["input_ids"]))


def test_the_only_source_is_the_stream_itself(traced):
    example = traced(case("llama"))
    inputs = example.case.inputs()
    with torch.no_grad():
        forward = example.graph.run(**inputs)
        forward.patch("embed", 3 * forward.component("embed"))
        assert_close(forward.output, output_replaced(example.model, "model.embed_tokens", lambda x: 3 * x, inputs))
        assert_close(forward.component("embed"), 3 * example.model.model.embed_tokens(inputs["input_ids"]))


def test_later_patches_leave_earlier_ones_and_reach_what_follows(traced):
    """Zero one head of layer 1, then the first MLP: the other head is computed anew, the zeroed one stays."""
    example = traced(case("llama"))
    inputs = example.case.inputs()
    layers = example.model.model.layers

    def hook(module, args):
        value = args[0].clone()
        value[..., :8] = 0
        return (value,)

    handle = layers[1].self_attn.o_proj.register_forward_pre_hook(hook)
    expected = output_replaced(example.model, "model.layers.0.mlp", torch.zeros_like, inputs)
    one = run(example.model, inputs)
    handle.remove()
    with torch.no_grad():
        forward = example.graph.split("heads").run(**inputs)
        assert_close(forward.output, example.output)
        forward.patch("L1.attn.head0", torch.zeros_like(forward.component("L1.attn.head0")))
        assert_close(forward.output, one)
        forward.patch("L0.mlp", torch.zeros_like(forward.component("L0.mlp")))
        assert_close(forward.output, expected)
        assert not forward.component("L1.attn.head0").any()


def test_a_patched_part_of_the_first_sum_and_a_read_of_both_sides(traced):
    """Asked for at once, values before and after a patched sum are both right."""
    example = traced(case("llama"))
    inputs = example.case.inputs()
    graph = example.graph.split("heads")
    with torch.no_grad():
        clean, forward = graph.run(**inputs), graph.run(**inputs)
        value = torch.ones_like(clean.component("L0.attn.head1"))
        forward.patch("L0.attn.head1", value)
        forward.need(graph.stream.points)
        assert_close(forward.point(0), clean.point(0))
        assert_close(forward.point(1), clean.point(1) - clean.component("L0.attn.head1") + value)


def test_a_stream_that_starts_at_the_input_and_takes_in_more():
    """h0 = x; then h = h + mlp(h) + y: the input, and what enters in mid-stream, as components."""

    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, y):
            h = x + torch.tanh(self.first(x)) + y
            return h + torch.tanh(self.second(h))

    torch.manual_seed(0)
    model = Conditioned().eval()
    x, y, z = torch.randn(3, 2, 4)
    graph = jg.trace(model, x, y, dynamic=False)
    (injected,) = graph.injections
    with torch.no_grad():
        forward = graph.run(x, y)
        assert_close(forward.component(injected), y)
        assert_close(forward.component("embed"), x)
        forward.patch("embed", z)
        assert_close(forward.output, model(z, y))
        forward.patch(injected, 2 * y)
        assert_close(forward.output, model(z, 2 * y))
        forward.patch(injected, y)
        forward.patch("embed", x)
        assert_close(forward.output, model(x, y))
    # As a receiver it reads nothing, and to first order too.
    found = jg.patch(graph, {"x": x, "y": y}, {"x": z, "y": 2 * y}, target=0, screen=9)
    place = found.receivers.index(injected)
    assert found.estimates is not None
    assert float(found.effects[0, place].abs().max()) == float(found.estimates[0, place].abs().max()) == 0
    assert found.senders.index(injected) > 0


def test_what_cannot_be_patched(traced):
    graph = traced(case("llama")).graph.split("heads")
    inputs = case("llama").inputs()
    forward = graph.run(**inputs)
    with pytest.raises(jg.SelectionError, match=r"L0\.mpl.*did you mean 'L0\.mlp'"):
        forward.component("L0.mpl")
    with pytest.raises(jg.InputError, match="shape"):
        forward.patch("L0.mlp", torch.zeros(3))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= 2e-5 * max(float(expected.abs().max()), 1e-3)


def test_points_and_types_are_checked(traced):
    forward = traced(case("llama")).graph.run(**case("llama").inputs())
    with pytest.raises(jg.SelectionError, match=r"points 0\.\.4, not 9"):
        forward.point(9)
    with pytest.raises(jg.InputError, match="float32"):
        forward.patch("L0.mlp", forward.component("L0.mlp").double())


class Constant(nn.Module):
    """h = x + tanh(f(x)) + c, with a constant that all elements of the batch share; then h + tanh(g(h))."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.shift = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        h = x + torch.tanh(self.first(x)) + (self.shift if shift is None else shift)
        return h + torch.tanh(self.second(h))


def test_what_enters_once_for_all_elements_of_a_batch() -> None:
    """It is scaled, and sends and receives, as what has a value for each; no two copies of it lie side by side."""
    torch.manual_seed(0)
    model = Constant().eval()
    x, y = torch.randn(2, 2, 3, 4)
    graph = jg.trace(model, x, dynamic=False)
    (injected,) = graph.injections
    patched = jg.patch(graph, x, y, target=0, position=None)
    assert float(patched.effects[:, patched.receivers.index(injected)].nan_to_num().abs().max()) == 0
    with torch.no_grad():
        ablated = jg.ablate(graph, None, x, target=0, position=None)
        (path,) = [path for path in ablated.outputs if path.startswith(injected)]
        through = ablated.outputs[path].through
        assert through is not None
        assert_close(through, model(x, torch.zeros(3, 4)))
        own = model(x)
        sent = patched.totals[patched.senders.index("embed"), ..., :]
        expected = model(y)[..., 0] - own[..., 0]
        assert_close(sent.float(), expected)
