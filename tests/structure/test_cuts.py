"""Branches cut into heads and sets of neurons: found from the graph, and summing to the branch at every order."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.jets.series import Series
from tests.applications.ngrams.tables import relocated
from tests.conftest import run
from tests.zoo import CASES, case

ATTENTION = [c for c in CASES if any(path and "attn" in path for j in c.structure.joins for _, path in j.branches)]
"""The models that have attention branches."""


@pytest.mark.parametrize("how", ["heads", "neurons"])
@pytest.mark.parametrize("given", ATTENTION, ids=lambda c: c.name)
def test_parts_sum_to_the_branch_at_every_order(given, how, traced):
    graph = traced(given).graph
    parts = graph.split(how)
    inputs = given.inputs()
    whole, cut = graph.run(**inputs), parts.run(**inputs)
    with torch.no_grad():
        for join in graph.stream.joins:
            h = whole[join.fork]
            variate = Series.variate(h, torch.randn(h.shape, generator=torch.Generator().manual_seed(0)), 2)
            for branch in join.branches:
                pieces = [b for b in parts.branches.values() if b.part is not None and b.part.whole == branch.alias]
                if not pieces:
                    assert (branch.kind == "attn") != (how == "heads")
                    continue
                expected = whole.branch(branch, variate, 2).stacked()
                actual = torch.stack([cut.branch(piece, variate, 2).stacked() for piece in pieces]).sum(0)
                if pieces[0].part.cut.constant == "fixed":
                    actual[0] += cut.pieces.constant(pieces[0].part.cut, h)
                assert_close(actual, expected)


@pytest.mark.parametrize("given", ATTENTION, ids=lambda c: c.name)
def test_the_split_graph_gives_the_models_output(given, traced):
    example = traced(given)
    with torch.no_grad():
        assert_close(example.graph.split("heads")(**given.inputs()), example.output)


HEADS = {
    # case: (output projection of the first attention branch by module path, what the branch does after it)
    "gpt2": ("transformer.h.0.attn.c_proj", None),
    "llama": ("model.layers.0.self_attn.o_proj", None),
    "gptj": ("transformer.h.0.attn.out_proj", None),
    "bert": ("bert.encoder.layer.0.attention.output.dense", None),
    "bloom": ("transformer.h.0.self_attention.dense", None),
    "opt_post_norm": ("model.decoder.layers.0.self_attn.out_proj", None),
    "falcon": ("transformer.h.0.self_attention.dense", None),
    "gpt_oss": ("model.layers.0.self_attn.o_proj", None),
    "vit": ("vit.layers.0.attention.o_proj", None),
    "gemma2": ("model.layers.0.self_attn.o_proj", "model.layers.0.post_attention_layernorm"),
    "olmo2": ("model.layers.0.self_attn.o_proj", "model.layers.0.post_attention_layernorm"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_its_slice_of_the_output_projection(name, traced):
    """Against the module itself: the projection of one head's slice of its input, with the norm after it held."""
    example = traced(case(name))
    path, norm = HEADS[name]
    seen: dict[str, Tensor] = {}
    hooks = [
        example.model.get_submodule(at).register_forward_hook(
            lambda module, args, output, at=at: seen.update({at: args[0], f"{at}:out": output})
        )
        for at in (path, norm)
        if at is not None
    ]
    run(example.model, example.case.inputs())
    for hook in hooks:
        hook.remove()
    projection, value = example.model.get_submodule(path), seen[path]
    graph = example.graph.split("heads")
    first = next(b for b in graph.branches.values() if b.part is not None).part.whole
    parts = [b for b in graph.branches.values() if b.part is not None and b.part.whole == first]
    width = value.shape[-1] // len(parts)
    forward = graph.run(**example.case.inputs())
    for head, branch in enumerate(parts):
        alone = torch.zeros_like(value)
        alone[..., head * width : (head + 1) * width] = value[..., head * width : (head + 1) * width]
        with torch.no_grad():
            expected = projection(alone) - projection(torch.zeros_like(value))
            if norm is not None:
                scale = seen[f"{norm}:out"] / seen[norm]
                expected = expected * scale
            actual = forward.component(branch.alias)
        assert actual.abs().max() > 0.01
        assert_close(actual.reshape(expected.shape), expected)


def test_neurons_are_rows_of_the_last_layer(traced):
    example = traced(case("gpt2"))
    mlp = example.model.transformer.h[1].mlp
    seen: list[Tensor] = []
    hook = mlp.c_proj.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    run(example.model, example.case.inputs())
    hook.remove()
    graph = example.graph.split({"L1.mlp": [[3, 5], [0]]})
    forward = graph.run(**example.case.inputs())
    assert [alias for alias in graph.branches if alias.startswith("L1.mlp")] == [
        "L1.mlp.set0",
        "L1.mlp.set1",
        "L1.mlp.rest",
    ]
    with torch.no_grad():
        for alias, indices in (("L1.mlp.set0", [3, 5]), ("L1.mlp.set1", [0])):
            expected = seen[0][..., indices] @ mlp.c_proj.weight[indices]
            assert_close(forward.component(alias), expected)
    (constant,) = graph.stream.stages[3].step.constants
    assert constant.alias == "L1.mlp"


def test_groups_of_neighbours(traced):
    graph = traced(case("llama")).graph.split({"*.mlp": 5, "L0.attn": "heads"})
    sizes = [len(b.part.indices) for b in graph.branches.values() if b.alias.startswith("L1.mlp")]
    assert sizes == [4, 5, 5, 5, 5]
    assert sum(b.alias.startswith("L0.attn.head") for b in graph.branches.values()) == 2
    assert "L1.attn" in graph.branches


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "llama"])
def test_terms_of_heads_sum_to_the_terms_of_the_branch(name, traced):
    """Through compiled paths at orders 0 to 2: every term against the head's own series, and their sum."""
    given = case(name)
    graph = traced(given).graph
    rules = {
        "*": jg.Jet(2, weights="unit", orders="apart", scale="none"),
        "L1.*": jg.Atom(),
        "logits": jg.Jet(0, weights="unit"),
    }
    expansion = jg.expand(graph, split={"L0.attn": "heads"}, rules=rules)
    module = jg.compile(expansion, "embed > L0.attn.* > logits")
    whole, split = graph.run(**given.inputs()), expansion.graph.run(**given.inputs())
    parts = [b for b in expansion.graph.branches.values() if b.part is not None]
    decoder = graph.structure.decoder
    with torch.no_grad():
        values = module(**given.inputs())
        h, embed = whole.point(0), whole.summand("embed")
        # Where the stream is the embedding alone the higher orders are zero; another point of the stream is not.
        variate = Series.variate(embed, h - embed, 2)
        expected = whole.branch(graph.branches["L0.attn"], variate, 2)
        for order in range(3):
            pieces = [split.branch(part, variate, 2).coefficient(order) for part in parts]
            total = torch.stack(pieces).sum(0)
            if order == 0 and parts[0].part.cut.constant == "fixed":
                total = total + split.pieces.constant(parts[0].part.cut, h)
            assert_close(total, expected.coefficient(order))
            for part, piece in zip(parts, pieces, strict=True):
                logits = whole.pieces.linear(decoder.affine, whole.through(decoder.nonlinear, piece))
                path = f"embed > {part.alias}^{order} > logits^0"
                if order and len(graph.outline.sources) == 1:
                    assert path not in expansion  # the one centre is the stream, so that it would be zero
                else:
                    assert_close(values.terms[path], logits)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "bert", "falcon", "t5"])
def test_components_of_heads_leave_no_remainder_when_the_decoder_is_frozen(name, traced):
    given = case(name)
    expansion = jg.expand(
        traced(given).graph,
        recipe="components",
        split="heads",
        rules={"logits": jg.Freeze(), "*norm*": jg.Freeze()} if name == "bert" else {"logits": jg.Freeze()},
    )
    with torch.no_grad():
        values = jg.compile(expansion)(**given.inputs())
    assert any("head1" in str(path) for path in values.terms)
    assert values.remainder.abs().max() < 1e-4 * values.output.abs().max()


class Attended(nn.Module):
    """h + norm(attention of two heads), the norm being a module, primitives, or on the heads' concatenation."""

    def __init__(self, norm: nn.Module | None, early: bool = False):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.out = nn.Linear(6, 6)
        self.norm = norm
        self.early = early

    def heads(self, x):
        q, k, v = (layer(x).unflatten(-1, (2, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return (torch.softmax(q @ k.transpose(-1, -2), -1) @ v).transpose(1, 2).flatten(2)

    def normed(self, y):
        return y * (y.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() if self.norm is None else self.norm(y)

    def forward(self, x):
        y = self.heads(x)
        return x + (self.out(self.normed(y)) if self.early else self.normed(self.out(y)))


def held(norm: nn.Module | None, y: Tensor, part: Tensor) -> Tensor:
    """The norm of a part of y, with the denominator of the whole, by hand and without its bias."""
    if isinstance(norm, nn.LayerNorm):
        y, part = y - y.mean(-1, keepdim=True), part - part.mean(-1, keepdim=True)
    eps = {nn.LayerNorm: 1e-5, nn.RMSNorm: 1e-4}.get(type(norm), 1e-6)
    gain = 1 if norm is None else norm.weight
    return part * (y.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * gain


@pytest.mark.parametrize("early", [False, True], ids=["after", "before the projection"])
@pytest.mark.parametrize("name", ["primitives", "layer norm", "rms norm"])
def test_a_norm_inside_a_branch_keeps_its_denominator(name, early):
    torch.manual_seed(0)
    norm = {"primitives": None, "layer norm": nn.LayerNorm(6), "rms norm": nn.RMSNorm(6, eps=1e-4)}[name]
    block = Attended(norm, early).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, 5, 6)
    graph = jg.trace(block, x)
    split = graph.split("heads")
    forward = split.run(x)
    with torch.no_grad():
        flat = block.heads(x)
        y = flat if early else block.out(flat)
        bias = torch.zeros(()) if early else block.out.bias
        total = torch.zeros_like(x)
        for head in range(2):
            masked = torch.zeros_like(flat)
            masked[..., 3 * head : 3 * head + 3] = flat[..., 3 * head : 3 * head + 3]
            expected = held(norm, y, masked if early else masked @ block.out.weight.T)
            expected = expected @ block.out.weight.T if early else expected
            assert_close(forward.component(f"L0.attn.head{head}"), expected)
            total += expected
        if "L0.attn.offset" in split.branches:
            offset = held(norm, y, bias.expand_as(y)) + (norm.bias if name == "layer norm" else 0)
            assert not early
            assert_close(forward.component("L0.attn.offset"), offset)
        else:
            assert early
        assert_close(split(x), block(x))
        # Every order of the parts' jets sums to the branch's, and so does their frozen image.
        variate = Series.variate(x, torch.randn(x.shape), 3)
        whole = graph.run(x).branch(graph.branches["L0.attn"], variate, 3).stacked()
        parts = torch.stack([forward.branch(branch, variate, 3).stacked() for branch in split.branches.values()]).sum(0)
        assert_close(parts[1:], whole[1:])
        frozen = jg.expand(graph, recipe="components", split="heads", rules={"*.attn.*": jg.Freeze()})
        assert jg.compile(frozen)(x).remainder.abs().max() < 1e-5


def test_an_rms_norm_without_an_eps_has_that_of_the_dtype_in_which_it_computes():
    """Which is float32 for bfloat16; beside a small value the other one would be all of the denominator."""
    torch.manual_seed(0)
    block = Attended(nn.RMSNorm(6)).eval().bfloat16()
    with torch.no_grad():
        block.out.weight *= 0.02
        block.out.bias *= 0
    x = torch.randn(2, 5, 6).bfloat16()
    forward = jg.trace(block, x).split("heads").run(x)
    total = sum(forward.component(f"L0.attn.head{head}") for head in range(2))
    torch.testing.assert_close(total, block(x) - x, atol=0.03, rtol=0)


def test_a_part_behind_a_norm_that_is_not_frozen():
    block = Attended(nn.LayerNorm(6)).eval()
    graph = jg.trace(block, torch.randn(2, 5, 6))
    expansion = jg.expand(graph, split="heads", rules={"*.attn.*": jg.Freeze(("attention",))})
    with pytest.raises(jg.JetGraphError, match="add 'norm' to the gates"):
        jg.compile(expansion, "embed > L0.attn.head0 > logits")(torch.randn(2, 5, 6))


# Where the heads are


class Layout(nn.Module):
    """h + attention of two heads of four features, or as many as `heads`, written down in one of many ways."""

    def __init__(self, attend: Callable[["Layout", Tensor], Tensor], heads: int = 2, values: int = 8):
        super().__init__()
        self.attend, self.heads = attend, heads
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, values), nn.Linear(8, values)
        self.out = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.attend(self, x)


def scaled(q, k):
    return torch.softmax(q @ k.transpose(-1, -2) / 2, -1)


def windows(s, x):
    q, k, v = (f(x).reshape(-1, 3, 2, 2, 4).transpose(2, 3) for f in (s.q, s.k, s.v))
    return s.out(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(-1, 6, 8))


def windows_in_the_batch(s, x):
    q, k, v = (f(x).reshape(-1, 2, 2, 4).transpose(1, 2) for f in (s.q, s.k, s.v))
    return s.out((scaled(q, k) @ v).transpose(1, 2).reshape(-1, 2, 8)).reshape(-1, 6, 8)


def einsum(s, x):
    q, k, v = (f(x).unflatten(-1, (2, 4)) for f in (s.q, s.k, s.v))
    return s.out(torch.einsum("bhqk,bkhd->bqhd", torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1), v).flatten(2))


def image(s, x):
    """Batch and heads in one dimension, positions in two: five dimensions in between, as in SAM."""
    q, k, v = (f(x).view(-1, 6, 2, 4).transpose(1, 2).reshape(-1, 6, 4) for f in (s.q, s.k, s.v))
    return s.out((scaled(q, k) @ v).view(-1, 2, 3, 2, 4).permute(0, 2, 3, 1, 4).reshape(-1, 6, 8))


def sequence_first(s, x):
    n, t = x.shape[:2]
    q, k, v = (f(x.transpose(0, 1)).contiguous().view(t, n * 2, 4).transpose(0, 1) for f in (s.q, s.k, s.v))
    y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v).transpose(0, 1).contiguous()
    return s.out(y.view(t * n, 8)).view(t, n, 8).transpose(0, 1)


def chunks(s, x):
    """Heads outside the batch: cut off the features, and put one after the other along the first dimension."""
    q, k, v = (torch.cat(f(x).chunk(2, dim=2), dim=0) for f in (s.q, s.k, s.v))
    return s.out(torch.cat((scaled(q, k) @ v).chunk(2, dim=0), dim=2))


def one_by_one(s, x):
    q, k, v = (f(x).unflatten(-1, (2, 4)) for f in (s.q, s.k, s.v))
    y = torch.einsum("bhqk,bkhd->bqhd", torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1), v)
    return s.out(torch.cat([0.5 * head for head in y.unbind(2)], -1))


def grouped(s, x):
    """Two heads of keys and values, each for two of queries: heads are two dimensions."""
    q = s.q(x).unflatten(-1, (2, 2, 2)).permute(0, 2, 3, 1, 4)
    k, v = (f(x).unflatten(-1, (2, 1, 2)).permute(0, 2, 3, 1, 4) for f in (s.k, s.v))
    return s.out((scaled(q, k) @ v).permute(0, 3, 1, 2, 4).flatten(2))


def grouped_in_one(s, x):
    q, k, v = (f(x).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (s.q, s.k, s.v))
    return s.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


def all_queries(s, x):
    """One head of keys and values: positions and heads of the queries in one dimension."""
    q = s.q(x).reshape(x.shape[0], -1, 4)
    return s.out((scaled(q, s.k(x)) @ s.v(x)).reshape(x.shape))


def values_first(s, x):
    """v · patternᵀ, [batch, head, feature, position]."""
    q, k, v = (f(x).unflatten(-1, (2, 4)).permute(0, 2, 3, 1) for f in (s.q, s.k, s.v))
    return s.out((v @ torch.softmax(q.transpose(-1, -2) @ k / 2, -1).transpose(-1, -2)).permute(0, 3, 1, 2).flatten(2))


def features_outside(s, x):
    q, k, v = (f(x).unflatten(-1, (4, 2)).permute(0, 3, 1, 2) for f in (s.q, s.k, s.v))
    return s.out((scaled(q, k) @ v).permute(0, 2, 3, 1).flatten(2))


def projected_by_head(s, x):
    """In one product of three with the pattern."""
    q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (s.q, s.k, s.v))
    weight = s.out.weight.T.unflatten(0, (2, 4))
    return torch.einsum("bhqk,bhkd,hdm->bqm", scaled(q, k), v, weight) + s.out.bias


def results_by_head(s, x):
    q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (s.q, s.k, s.v))
    weight = s.out.weight.T.unflatten(0, (2, 4))
    return torch.einsum("bhqd,hdm->bqhm", F.scaled_dot_product_attention(q, k, v), weight).sum(2) + s.out.bias


def normed_by_head(s, x):
    """Slices of padded heads, each divided by a number that all share."""
    q, k, v = (F.pad(f(x).unflatten(-1, (2, 4)), (0, 4)).transpose(1, 2) for f in (s.q, s.k, s.v))
    y = F.scaled_dot_product_attention(q, k, v)[..., :4] / (1 + x.mean(-1).exp())[:, None, :, None]
    return s.out(y.transpose(1, 2).reshape(-1, 6, 8))


def without_softmax(s, x):
    """Linear attention, q (kᵀ v): the features come out of the product that the pattern is."""
    q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (s.q, s.k, s.v))
    return s.out((F.elu(q) @ (F.elu(k).transpose(-1, -2) @ v)).transpose(1, 2).flatten(2))


def single(s, x):
    return s.out(scaled(s.q(x), s.k(x)) @ s.v(x))


def one_feature(s, x):
    q, k, v = (f(x).unflatten(-1, (8, 1)).transpose(1, 2) for f in (s.q, s.k, s.v))
    return s.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def differential(s, x):
    """One pattern less another one, of pairs of heads, each on both halves of the values, as in DiffLlama."""
    q, k, v = (f(x).unflatten(-1, (4, 2)).transpose(1, 2) for f in (s.q, s.k, s.v))
    both = [F.scaled_dot_product_attention(q, k, half.repeat(1, 2, 1, 1)) for half in v.chunk(2, dim=1)]
    one, other = torch.cat([y.transpose(1, 2) for y in both], -1).chunk(2, dim=2)
    return s.out(F.rms_norm(one - 0.3 * other, (4,)).flatten(2))


def near_and_far(s, x):
    """Two attentions added, of one set of heads."""
    q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (s.q, s.k, s.v))
    near = F.scaled_dot_product_attention(q, k, v)
    return s.out((near + 0.5 * F.scaled_dot_product_attention(k, q, v)).transpose(1, 2).flatten(2))


def normed_in_groups(s, x):
    """Two attentions added, and a norm over half of the heads each, as in Mamba 2 with groups."""
    q, k, v = (f(x).unflatten(-1, (4, 2)).transpose(1, 2) for f in (s.q, s.k, s.v))
    both = F.scaled_dot_product_attention(q, k, v) + F.scaled_dot_product_attention(k, q, v)
    y = both.transpose(1, 2).flatten(2).unflatten(-1, (2, 4))
    return s.out((y * ((y * y).mean(-1, keepdim=True) + 1e-6).rsqrt()).flatten(2))


def listed(s, x):
    """A module's own columns for each head, one after the other."""
    q, k, v = ((f(x)[..., :4], f(x)[..., 4:]) for f in (s.q, s.k, s.v))
    return s.out(torch.cat([scaled(*head) @ value for *head, value in zip(q, k, v, strict=True)], -1))


def stacked(s, x):
    """Heads that are selected one by one, and put into a dimension of their own."""
    q, k, v = (f(x).unflatten(-1, (2, 4)) for f in (s.q, s.k, s.v))
    heads = [scaled(q[:, :, at], k[:, :, at]) @ v[:, :, at] for at in range(2)]
    return s.out(torch.stack(heads).permute(1, 2, 0, 3).reshape(x.shape))


def stacked_pairs(s, x):
    """Two lists of two heads each."""
    q, k, v = (f(x).unflatten(-1, (2, 2, 2)).permute(2, 0, 3, 1, 4).unbind(0) for f in (s.q, s.k, s.v))
    pairs = [scaled(*pair) @ value for *pair, value in zip(q, k, v, strict=True)]
    return torch.einsum("bpqhd,mphd->bqm", torch.stack(pairs, 1).transpose(2, 3), s.out.weight.view(8, 2, 2, 2))


def written_out(s, x):
    """Both products by broadcasting, heads beside the features."""
    q, k, v = (f(x).unflatten(-1, (2, 4)) for f in (s.q, s.k, s.v))
    pattern = ((q[:, :, None] * k[:, None]).sum(-1) / 2).softmax(2)
    return s.out((pattern[..., None] * v[:, None]).sum(2).flatten(2))


def of_two_widths(s, x):
    """A head of two features beside one of six."""
    heads = zip(*(f(x).split([2, 6], -1) for f in (s.q, s.k, s.v)), strict=True)
    return s.out(torch.cat([scaled(*pair) @ value for *pair, value in heads], -1))


def blocks_of_positions(s, x, heads=1, join=torch.cat):
    """What is put side by side are positions, and no heads."""
    halves = zip(
        *(f(x).unflatten(-1, (heads, -1)).transpose(1, 2).chunk(2, 2) for f in (s.q, s.k, s.v)),
        strict=True,
    )
    y = join([scaled(q, k) @ v for q, k, v in halves], 2)
    return s.out(y.reshape(*y.shape[:2], 6, -1).transpose(1, 2).flatten(2))


def added_up(s, x):
    """The mean of two heads."""
    one, other = (scaled(f(x), s.k(x)) @ s.v(x) for f in (s.q, s.v))
    return s.out((one + other) / 2)


def two_kinds(s, x):
    """Two heads, and two others of another kind, put side by side."""
    q, k, v = (f(x).unflatten(-1, (4, 2)).transpose(1, 2) for f in (s.q, s.k, s.v))
    first = scaled(q[:, :2], k[:, :2]) @ v[:, :2]
    rest = F.scaled_dot_product_attention(q[:, 2:], k[:, 2:], v[:, 2:].cumsum(2))
    return s.out(torch.cat([first.transpose(1, 2).flatten(2), rest.transpose(1, 2).flatten(2)], -1))


def retention(s, x):
    """No softmax, and one norm over groups of channels that are the heads."""
    q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (s.q, s.k, s.v))
    y = (q @ k.transpose(-1, -2) * torch.ones(6, 6).tril() @ v).transpose(1, 2)
    return s.out(F.group_norm(y.reshape(-1, 8), 2).view(-1, 6, 8))


def summed_up(s, x):
    """Linear attention, whose kᵀ v is a sum up to each place of products of single features."""
    q, k, v = (F.elu(f(x).unflatten(-1, (2, 4)).transpose(1, 2)) for f in (s.q, s.k, s.v))
    state = (k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(2)
    return s.out((q.unsqueeze(-2) @ state).squeeze(-2).transpose(1, 2).flatten(2))


def folded(s, x):
    """Windows that `fold` puts back where they were, after they may have been more than one at a place."""
    q, k, v = (f(x).reshape(-1, 3, 2, 2, 4).transpose(2, 3) for f in (s.q, s.k, s.v))
    y = (scaled(q, k) @ v).permute(0, 2, 4, 3, 1).reshape(-1, 16, 3)
    y = F.fold(y, (6, 1), (2, 1), stride=(2, 1)).flatten(2)
    return s.out(F.unfold(y.unsqueeze(-1), (1, 1)).transpose(1, 2))


def buffered(s, x):
    """Each head is written into what was allocated for all."""
    q, k, v = (f(x).unflatten(-1, (2, 4)) for f in (s.q, s.k, s.v))
    y = torch.zeros(x.shape[0], 2, x.shape[1], 4)
    for head in range(2):
        y[:, head] = scaled(q[:, :, head], k[:, :, head]) @ v[:, :, head]
    return s.out(y.transpose(1, 2).flatten(2))


LAYOUTS = {
    # name: (attention, heads, width of keys and values)
    "windows": (windows, 2, 8),
    "windows in the batch": (windows_in_the_batch, 2, 8),
    "einsum": (einsum, 2, 8),
    "image": (image, 2, 8),
    "sequence first": (sequence_first, 2, 8),
    "chunks": (chunks, 2, 8),
    "one by one": (one_by_one, 2, 8),
    "grouped": (grouped, 4, 4),
    "grouped in one operator": (grouped_in_one, 4, 4),
    "queries of all heads": (all_queries, 2, 4),
    "values first": (values_first, 2, 8),
    "features outside": (features_outside, 2, 8),
    "projected by head": (projected_by_head, 2, 8),
    "results by head": (results_by_head, 2, 8),
    "normed by head": (normed_by_head, 2, 8),
    "without softmax": (without_softmax, 2, 8),
    "differential": (differential, 2, 8),
    "near and far": (near_and_far, 2, 8),
    "normed in groups": (normed_in_groups, 4, 8),
    "listed": (listed, 2, 8),
    "stacked": (stacked, 2, 8),
    "stacked pairs": (stacked_pairs, 4, 8),
    "written out": (written_out, 2, 8),
    "two kinds": (two_kinds, 4, 8),
    "retention": (retention, 2, 8),
    "summed up": (summed_up, 2, 8),
    "folded": (folded, 2, 8),
    "buffered": (buffered, 2, 8),
    "single": (single, 1, 8),
    "one feature": (one_feature, 8, 8),
}


FIXED = {"folded", "windows", "windows in the batch", "image", "normed by head", "retention"}
"""Those that have the number of positions written down."""
SHORT = ["image", "sequence first", "chunks"]
"""Those whose views read differently where all sizes are numbers."""


@pytest.mark.parametrize("kind", ["open sizes", "fixed length", "fixed sizes"])
def test_heads_are_found_wherever_they_are(kind):
    """Every head against its branch with the other heads' columns of the output projection put to zero."""
    torch.manual_seed(0)
    names = (
        SHORT if kind == "fixed sizes" else [name for name in LAYOUTS if (name in FIXED) == (kind == "fixed length")]
    )
    model = nn.Sequential(*(Layout(*LAYOUTS[name]) for name in names)).eval()
    x = torch.randn(2, 6, 8)
    split = jg.trace(model, x, dynamic=kind != "fixed sizes").split("heads")
    x = x if kind == "fixed sizes" else torch.randn(3, 6 if kind == "fixed length" else 5, 8)
    forward = split.run(x)
    with torch.no_grad():
        for number, name in enumerate(names):
            block, heads = model[number], LAYOUTS[name][1]
            found = [alias for alias in split.branches if alias.startswith(f"L{number}.attn.")]
            assert found == [f"L{number}.attn.head{head}" for head in range(heads)], name
            columns = torch.arange(8).reshape(heads, -1)
            if name == "features outside":
                columns = torch.arange(8).reshape(-1, heads).T
            point = forward.point(number)
            for head, alias in enumerate(found):
                alone = copy.deepcopy(block)
                alone.out.weight[:, [column for column in range(8) if column not in columns[head]]] = 0
                expected = alone(point) - point
                expected = expected if name == "stacked pairs" else expected - alone.out.bias
                assert expected.abs().max() > 0.01
                assert_close(forward.component(alias), expected)


ADDED = {
    "mean": lambda s, z: s.out(z.mean(1)),
    "sum": lambda s, z: s.out(z.sum(1)),
    "weights": lambda s, z: s.out(torch.einsum("bhtd,h->btd", z, s.k.bias[:2])),
    "row": lambda s, z: s.out((s.k.bias[:2] @ z.flatten(2).transpose(0, 1).flatten(1)).view(-1, *z.shape[2:])),
    "products": lambda s, z: (
        torch.bmm(z.transpose(0, 1).flatten(1, 2), s.out.weight.view(2, 4, 8).repeat(1, 2, 1))
        .view(2, -1, z.shape[2], 8)
        .sum(0)
    ),
    "tensordot": lambda s, z: torch.tensordot(z.transpose(1, 2), s.out.weight.view(2, 4, 8).repeat(1, 2, 1), 2),
    "tensordot by dims": lambda s, z: torch.tensordot(
        s.out.weight.view(8, 2, 4).repeat(1, 1, 2), z, ([1, 2], [1, 3])
    ).movedim(0, -1),
}
"""What is made of two heads of eight features, (batch, heads, positions, features), that are added up."""


@pytest.mark.parametrize("way", ADDED)
@torch.no_grad()
def test_heads_that_are_added_up_before_their_projection_or_by_it(way):
    torch.manual_seed(0)

    def attend(s, x):
        q, k = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (s.q, s.k))
        return ADDED[way](s, scaled(q, k) @ s.v(x).unflatten(-1, (2, 8)).transpose(1, 2))

    block = Layout(attend)
    block.v = nn.Linear(8, 16)
    block.double()
    split = jg.trace(nn.Sequential(block).eval(), torch.randn(2, 6, 8).double()).split("heads")
    assert [*split.branches] == ["L0.attn.head0", "L0.attn.head1"]
    x = torch.randn(3, 5, 8).double()
    forward = split.run(x)
    nothing = copy.deepcopy(block)
    nothing.v.weight.zero_(), nothing.v.bias.zero_()
    for head in range(2):
        alone = copy.deepcopy(block)
        rows = slice(8, 16) if head == 0 else slice(8)
        alone.v.weight[rows], alone.v.bias[rows] = 0, 0
        assert_close(forward.component(f"L0.attn.head{head}"), alone(x) - nothing(x))


def beside_a_constant(s, x):
    """What attention gives, and numbers that are not made of the stream."""
    one = torch.tanh(scaled(s.q(x), s.k(x)) @ s.v(x))
    return s.out(torch.cat([s.q.bias[:4].expand(*x.shape[:2], 4), one[..., :4]], -1))


def test_what_stands_beside_a_constant_is_left_whole():
    graph = jg.trace(nn.Sequential(Layout(single), Layout(beside_a_constant)).eval(), torch.randn(2, 6, 8))
    assert [*graph.split("heads").branches] == ["L0.attn.head0", "L1.attn"]


def test_attention_in_pieces():
    """Heads of two widths are told; pieces of a sequence are no heads, and have all the same; what is only added up is
    left whole, which is said.
    """
    torch.manual_seed(0)
    ways = (
        of_two_widths,
        blocks_of_positions,
        lambda s, x: blocks_of_positions(s, x, 2, torch.stack),
        added_up,
    )
    model, x = nn.Sequential(*map(Layout, ways)).eval(), torch.randn(2, 6, 8)
    split = jg.trace(model, x, dynamic=False).split("heads")
    numbers = [0, 0, 1, 2, 2, 3]
    heads = ["head0", "head1", "head0", "head0", "head1"]
    names = [f"L{number}.attn.{head}" for number, head in zip(numbers, heads, strict=False)]
    assert [*split.branches] == [*names, "L3.attn"]
    assert "2 attention products reach its end beside each other" in split.branches["L3.attn"].undivided
    forward = split.run(x)
    for alias, number, columns in zip(
        names, numbers, ([0, 1], [*range(2, 8)], [*range(8)], [*range(4)], [*range(4, 8)]), strict=False
    ):
        alone = copy.deepcopy(model[number])
        with torch.no_grad():
            alone.out.weight[:, [column for column in range(8) if column not in columns]] = 0
            point = forward.point(number)
            assert_close(forward.component(alias), alone(point) - point - alone.out.bias)


@pytest.mark.parametrize("batch_first", [True, False])
def test_heads_of_pytorchs_own_attention(batch_first):
    """As it is called by default: batch and heads are one dimension, and the mean pattern is computed besides."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=batch_first)

        def forward(self, x):
            return x + self.attn(x, x, x)[0]

    torch.manual_seed(0)
    block, x = Own().eval(), torch.randn(3, 5, 8)
    forward = jg.trace(block, x).split("heads").run(x)
    assert [alias for alias in forward.graph.branches if ".head" in alias] == ["L0.attn.head0", "L0.attn.head1"]
    with torch.no_grad():
        for head in range(2):
            alone = copy.deepcopy(block)
            alone.attn.out_proj.weight[:, 4 * (1 - head) : 4 * (2 - head)] = 0
            assert_close(forward.component(f"L0.attn.head{head}"), alone(x) - x - alone.attn.out_proj.bias)


@pytest.mark.parametrize(
    ("between", "number"),
    [(F.hardswish, 2), (lambda y: F.gelu(y) * 0.5, 2), (lambda y: F.layer_norm(torch.tanh(y), (8,)) ** 2, None)],
    ids=["act", "gelu", "norm of all heads"],
)
def test_heads_before_an_activation(between, number):
    """They are told apart at the projection, as in LeViT, if each goes there by itself."""

    def attended(s, x):
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (s.q, s.k, s.v))
        return between((scaled(q, k) @ v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    block, x = Layout(lambda s, x: s.out(attended(s, x))).eval(), torch.randn(2, 6, 8)
    graph = jg.trace(block, x)
    if number is None:
        with pytest.raises(jg.InputError, match="cannot be split into heads"):
            graph.split("heads")
        return
    forward = graph.split("heads").run(x)
    assert list(forward.graph.branches) == ["L0.attn.head0", "L0.attn.head1"]
    with torch.no_grad():
        for head in range(2):
            alone = torch.zeros(8).index_fill(0, torch.arange(4 * head, 4 * head + 4), 1.0)
            expected = (attended(block, x) * alone) @ block.out.weight.T
            assert_close(forward.component(f"L0.attn.head{head}"), expected)


def plain_heads(s, x):
    q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (s.q, s.k, s.v))
    return s.out((scaled(q, k) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (
            lambda y: (f := y.transpose(1, 2).flatten(2)).masked_scatter(torch.ones_like(f, dtype=torch.bool), f),
            r"through torch.ops.aten.masked_scatter.default in (the root module|module '0')",
        ),
        (
            lambda y: (f := y.transpose(1, 2).flatten(2)).index_put((torch.arange(2),), f),
            r"through torch.ops.aten.index_put.default in (the root module|module '0')",
        ),
    ],
    ids=["scattered", "put"],
)
def test_heads_that_cannot_be_followed(end, says):
    def attend(s, x):
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (s.q, s.k, s.v))
        return s.out(end(scaled(q, k) @ v))

    graph = jg.trace(Layout(attend).eval(), torch.randn(2, 6, 8))
    with pytest.raises(jg.JetGraphError, match=rf"'L0.attn' \(module .*cannot be split into heads: .*{says}"):
        graph.split("heads")
    assert len(graph.split({"L0.attn": "neurons"}).branches) == 8
    # Another branch is split all the same, and this one is left whole, which is said.
    both = jg.trace(nn.Sequential(Layout(attend), Layout(plain_heads)).eval(), torch.randn(2, 6, 8)).split("heads")
    assert list(both.branches) == ["L0.attn", "L1.attn.head0", "L1.attn.head1"]
    assert re.search(says, both.branches["L0.attn"].undivided)
    assert "identity, left whole" in repr(both)
    with pytest.raises(jg.InputError, match=r"'L0.attn' .*cannot be split into heads"):
        jg.trace(nn.Sequential(Layout(attend), Layout(plain_heads)).eval(), torch.randn(2, 6, 8)).split(
            {"*.attn": "heads"}
        )


@pytest.mark.parametrize(
    "end",
    [
        lambda y: y.transpose(1, 2).flatten(2).repeat_interleave(1, dim=-1),
        lambda y: y.transpose(1, 2).flatten(2).unfold(-1, 8, 8).squeeze(-2),
    ],
    ids=["repeated", "unfolded"],
)
def test_heads_on_unusual_ways(end):
    def heads(s, x):
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (s.q, s.k, s.v))
        return scaled(q, k) @ v

    block, x = Layout(lambda s, x: s.out(end(heads(s, x)))).eval(), torch.randn(2, 6, 8)
    forward = jg.trace(block, x).split("heads").run(x)
    with torch.no_grad():
        features = heads(block, x).transpose(1, 2)
        for head in range(2):
            expected = features[:, :, head] @ block.out.weight[:, 4 * head : 4 * head + 4].T
            assert_close(forward.component(f"L0.attn.head{head}"), expected)


def test_gated_heads_hold_the_gate():
    """Heads of W (attention ⊙ σ(G h)): the gate depends on the stream, not on the heads."""

    class Gated(Attended):
        def __init__(self):
            super().__init__(None)
            self.gate = nn.Linear(6, 6)

        def forward(self, x):
            return x + self.out(self.heads(x) * torch.sigmoid(self.gate(x)))

    torch.manual_seed(0)
    block = Gated().eval()
    x = torch.randn(2, 5, 6)
    graph = jg.trace(block, x)
    split = graph.split("heads")
    forward = split.run(x)
    with torch.no_grad():
        gated = block.heads(x) * torch.sigmoid(block.gate(x))
        for head in range(2):
            expected = gated[..., 3 * head : 3 * head + 3] @ block.out.weight[:, 3 * head : 3 * head + 3].T
            assert_close(forward.component(f"L0.attn.head{head}"), expected)
        assert_close(split(x), block(x))


class Bottleneck(nn.Module):
    """x + W′ m(r + attention(r)) with r = W x, and m a layer with an activation, or gated, and a skip of its own."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.down, self.up, self.out, self.wide, self.gate = (nn.Linear(8, 8) for _ in range(5))
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.norm, self.layer = nn.LayerNorm(8), layer

    def heads(self, r: Tensor) -> Tensor:
        q, k, v = (f(r).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return (scaled(q, k) @ v).transpose(1, 2).flatten(2)

    def after(self, u: Tensor, r: Tensor, whole: Tensor | None = None) -> Tensor:
        """W′ m(r + O u); for a part u of a whole what is linear in it: without constants, gates held at the whole."""
        held = whole is not None

        def linear(layer: nn.Linear, y: Tensor) -> Tensor:
            return y @ layer.weight.T if held else layer(y)

        y = linear(self.out, u) if held else self.out(u) + r
        all_of_it = y if whole is None else self.out(whole) + r
        if held:
            deviation = all_of_it.var(-1, unbiased=False, keepdim=True).add(self.norm.eps).sqrt()
            z = (y - y.mean(-1, keepdim=True)) / deviation * self.norm.weight
        else:
            z = self.norm(y)
        z, z_whole = linear(self.wide, z), self.wide(self.norm(all_of_it))
        if self.layer == "glu":
            made = F.silu(self.gate(self.norm(all_of_it))) * z
        elif self.layer == "routed":
            made = torch.sigmoid(z_whole) * z + (0.0 if held else 1.0) * torch.sigmoid(z_whole) * r
        else:
            made = BOTTLENECKS[self.layer](z_whole) * z / z_whole
        return linear(self.up, made + y)

    def forward(self, x: Tensor) -> Tensor:
        r = self.down(x)
        t = self.out(self.heads(r)) + r
        y = self.norm(t)
        z = self.wide(y)
        if self.layer == "glu":
            made = F.silu(self.gate(y)) * z
        elif self.layer == "routed":
            made = torch.sigmoid(z) * z + torch.sigmoid(z) * r
        else:
            made = BOTTLENECKS[self.layer](z)
        return x + self.up(made + t)


BOTTLENECKS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky": lambda z: F.leaky_relu(z, 0.2),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu of tanh": lambda z: F.gelu(z, approximate="tanh"),
    "hardswish": F.hardswish,
    "mish": F.mish,
    "glu": F.silu,
    "routed": torch.sigmoid,
}


@pytest.mark.parametrize("layer", BOTTLENECKS)
def test_heads_before_the_layers_of_a_bottleneck(layer):
    """As in MobileBERT and MobileViT: activations and gates of what follows are held at the branch's own value."""
    torch.manual_seed(0)
    block, x = Bottleneck(layer).eval().double(), torch.randn(2, 5, 8, dtype=torch.float64)
    graph = jg.trace(block, x)
    split = graph.split("heads")
    (whole,), parts = (one.stream.joins[0].branches for one in (graph, split))
    assert [part.alias for part in parts] == ["L0.attn.head0", "L0.attn.head1", "L0.attn.offset"]
    forward, plain = split.run(x), graph.run(x)
    variate = Series.variate(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype), 3)
    with torch.no_grad():
        r = block.down(x)
        u = block.heads(r)
        for head in range(2):
            alone = torch.zeros(8, dtype=x.dtype).index_fill(0, torch.arange(4 * head, 4 * head + 4), 1.0)
            assert_close(forward.component(f"L0.attn.head{head}"), block.after(u * alone, r, u))
        pieces = [forward.branch(part, variate, 3).stacked() for part in parts]
        assert_close(torch.stack(pieces).sum(0), plain.branch(whole, variate, 3).stacked())
        frozen = jg.expand(split, recipe="frozen")
        values = jg.compile(frozen)(x)
        assert values.remainder.abs().max() < 1e-10
        with pytest.raises(jg.InputError, match="add 'gate' to the gates"):
            jg.compile(jg.expand(split, rules={"*": jg.Freeze(gates=("norm", "attention"))}))(x)


@pytest.mark.parametrize(
    ("layer", "culprit"),
    [
        (torch.tanh, "tanh"),
        # Where two ways come together, the one that cannot be held is told.
        (lambda z: z + torch.sin(2 * z), "sin"),
        # What a norm written out divides by can be held, and is no obstacle.
        (lambda z: torch.exp(z / (z * z).mean(-1, keepdim=True).sqrt()), "exp"),
    ],
)
def test_heads_before_a_layer_that_cannot_be_held(layer, culprit, monkeypatch):
    """The tanh of a sum is no multiple of it."""
    monkeypatch.setitem(BOTTLENECKS, "other", layer)
    graph = jg.trace(nn.Sequential(Bottleneck("other")).eval(), torch.randn(2, 5, 8))
    says = rf"no attention product in it reaches its end .* comes torch.ops.aten.{culprit}.* in module '0'"
    with pytest.raises(jg.InputError, match=says):
        graph.split("heads")


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_bfloat16(name, traced):
    given = case(name)
    graph = relocated(traced(given).graph, torch.bfloat16)
    whole, split = graph.run(**given.inputs()), graph.split("heads").run(**given.inputs())
    with torch.no_grad():
        parts = [split.component(f"L0.attn.head{head}") for head in range(2)]
        total = parts[0].float() + parts[1].float()
        if (constant := split.graph.branches["L0.attn.head0"].part.cut).constant == "fixed":
            total = total + split.pieces.constant(constant, whole.point(0)).float()
        expected = whole.component("L0.attn").float()
        assert parts[0].dtype == torch.bfloat16
        assert float((total - expected).abs().max()) <= 0.02 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("head", "'heads', 'neurons', or a mapping"),
        ({"L7.attn": "heads"}, "matches no branch"),
        ({"L0.mlp": "heads"}, "no attention product"),
        ({"L0.mlp": [[0, 0]]}, "do not overlap"),
        ({"L0.mlp": [[99]]}, "from 0 to 63"),
        ({"L0.mlp": 99}, "64 coordinates"),
        ({"L0.mlp": "parts"}, "is unknown"),
        ({"L0.mlp": [0, 1]}, "a list of sets of whole numbers"),
        ({"L0.mlp": [[0.5]]}, "a list of sets of whole numbers"),
        ({"L0.mlp": True}, "a number of groups"),
    ],
    ids=["name", "pattern", "no heads", "overlap", "range", "groups", "share", "one set", "fractions", "truth"],
)
def test_what_cannot_be_split(how, says, traced):
    with pytest.raises(jg.JetGraphError, match=says):
        jg.expand(traced(case("gpt2")).graph, split=how)


def test_models_without_attention_and_outlines(traced):
    graph = traced(case("resnet_basic")).graph
    with pytest.raises(jg.JetGraphError, match="no branch of this model has heads"):
        jg.expand(graph, split="heads")
    with pytest.raises(jg.JetGraphError, match="outline"):
        jg.expand(graph.outline, split="neurons")
    with pytest.raises(jg.JetGraphError, match="split already"):
        graph.split("neurons").split("neurons")


def test_split_modules_survive_saving_and_moving(traced, tmp_path):
    given = case("gpt2")
    expansion = jg.expand(traced(given).graph, order=0, split={"L0.attn": "heads", "L1.mlp": [range(3)]})
    module = jg.compile(expansion, ["embed > L0.attn.head1 > logits", "pos > L1.mlp.set0 > logits"])
    loaded = jg.load(jg.save(module, tmp_path))
    inputs = given.inputs()
    with torch.no_grad():
        values, again = module(**inputs), loaded(**inputs)
        for path, value in values.terms.items():
            assert torch.equal(again.terms[path], value)
        double = loaded.double()(**inputs)
        for path, value in values.terms.items():
            assert_close(double.terms[path].float(), value)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert float((actual - expected).abs().max()) <= 2e-5 * max(scale, 1e-3)


def test_many_parts_are_folded_in_the_tree(traced):
    text = repr(traced(case("gpt2")).graph.split("neurons"))
    assert "L0.mlp.neuron1 … neuron62: 62 parts like this one" in text
    assert "L0.mlp.neuron0 " in text
    assert len(text.splitlines()) < 20


class Pixels(nn.Module):
    """Pixels that attend, and tokens behind a first one to which they are added: what is added to the first has the
    shape of what attention has made, and nothing else of it.
    """

    def __init__(self, normed: bool):
        super().__init__()
        self.qkv, self.out, self.give = nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.norm = nn.LayerNorm(4) if normed else nn.Identity()

    def forward(self, p):
        h = torch.cat([self.token.expand(len(p), -1, -1), self.norm(self.give(p))], 1)
        for _ in range(3):
            q, k, v = self.qkv(p).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
            p = p + self.out((torch.softmax(q @ k.mT, -1) @ v).transpose(1, 2).flatten(2))
            p = p + self.out(torch.relu(p))
            h = torch.cat([h[:, :1], h[:, 1:] + self.norm(self.give(p))], 1)
        return h


@pytest.mark.parametrize("normed", [False, True])
def test_zeros_beside_heads_are_none_of_them(normed):
    torch.manual_seed(0)
    model, p = Pixels(normed).eval(), torch.randn(2, 4, 6)
    graph = jg.trace(model, p)
    torch.testing.assert_close(graph.split("heads")(p), model(p))


class ColumnOfOnes(nn.Module):
    """Linear attention whose values have a column of ones behind them, which adds up its weights."""

    def __init__(self, padded: bool):
        super().__init__()
        self.padded = padded
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)

    def heads(self, h):
        q, k, v = self.qkv(h).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        ones = torch.ones_like(v[..., :1])
        v = F.pad(v, (0, 1), value=1.0) if self.padded else torch.cat([v, ones], -1)
        summed = torch.relu(q) @ (torch.relu(k).mT @ v)
        return summed[..., :-1] / (summed[..., -1:] + 1e-3)

    def forward(self, x):
        for _ in range(2):
            x = x + self.out(self.heads(x).transpose(1, 2).flatten(2))
        return x


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_heads_whose_weights_are_added_up_in_a_column(padded):
    torch.manual_seed(0)
    model, x = ColumnOfOnes(padded).eval().double(), torch.randn(2, 4, 6).double()
    graph = jg.trace(model, x)
    parts = graph.split("heads")
    torch.testing.assert_close(parts(x), model(x))
    given = parts.run(x)
    heads = model.heads(x)
    for number in range(2):
        branch = parts.branches[f"L0.attn.head{number}"]
        expected = heads[:, number] @ model.out.weight[:, 3 * number : 3 * number + 3].mT
        torch.testing.assert_close(given.branch(branch, x), expected)
