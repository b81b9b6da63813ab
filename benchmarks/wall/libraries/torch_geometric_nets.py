"""torch_geometric: networks of `nn.models`, and stacks of its message-passing layers, on one small graph."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import models
from torch_geometric.nn.conv import (
    APPNP,
    AntiSymmetricConv,
    ARMAConv,
    CGConv,
    ChebConv,
    ClusterGCNConv,
    DNAConv,
    EdgeConv,
    FAConv,
    FiLMConv,
    GatedGraphConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GENConv,
    GINConv,
    GPSConv,
    GraphConv,
    LEConv,
    MixHopConv,
    PointGNNConv,
    ResGatedGraphConv,
    SSGConv,
    TAGConv,
    TransformerConv,
)
from torch_geometric.nn.models.dimenet import InteractionPPBlock, OutputPPBlock
from torch_geometric.nn.models.rev_gnn import GroupAddRev
from torch_geometric.nn.models.visnet import ViS_MP

from benchmarks.wall.libraries import Net
from benchmarks.wall.libraries.drawing import measured

NODES, WIDTH, CLASSES = 7, 12, 3
EDGES = ((0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 0, 0, 3), (1, 0, 2, 1, 3, 2, 4, 3, 5, 4, 6, 5, 0, 6, 3, 0))
LAYERS = 3
"""Of the networks that are made of one kind of layer here."""


def edges() -> Tensor:
    """A ring with one chord, both ways."""
    return torch.tensor(EDGES)


def graph(**others: Callable[[], Any]) -> dict[str, Any]:
    """Features of nodes, edges, and what else is given."""
    return {"x": torch.randn(NODES, WIDTH), "edge_index": edges(), **{name: make() for name, make in others.items()}}


class Layers(nn.Module):
    """Linear layer, message-passing layers with an activation after each, linear layer."""

    def __init__(
        self, make: Callable[[], nn.Module], act: Callable[[Tensor], Tensor] = torch.relu, again: bool = False
    ) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layers = nn.ModuleList(make() for _ in range(LAYERS))
        self.act, self.again = act, again

    def forward(self, x: Tensor, edge_index: Tensor, **others: Tensor) -> Tensor:
        x = start = self.first(x).relu()
        for layer in self.layers:
            x = self.act(layer(x, start, edge_index) if self.again else layer(x, edge_index, **others))
        return self.last(x)


class WithWeights(Layers):
    """The same, with features of edges."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        return super().forward(x, edge_index, edge_attr=edge_attr)


def same(x: Tensor) -> Tensor:
    """Nothing."""
    return x


def _net(name: str, joins: int, read: str, kinds: str = "", **options: Any) -> Net:
    """A network of `nn.models` with three layers."""
    return Net(
        lambda: measured(
            getattr(models, name)(
                WIDTH, WIDTH, num_layers=LAYERS, out_channels=CLASSES, **{"norm": "batch_norm", **options}
            )
        ),
        graph,
        joins,
        read,
        kinds,
    )


def _layers(
    make: Callable[[], nn.Module], joins: int, read: str, kinds: str = "", *, edge_attr: bool = False, **options: Any
) -> Net:
    return Net(
        lambda: measured((WithWeights if edge_attr else Layers)(make, **options)),
        partial(graph, edge_attr=lambda: torch.randn(len(EDGES[0]), 4)) if edge_attr else graph,
        joins,
        read,
        kinds,
    )


def _deep(block: str, conv: Callable[[], nn.Module]) -> nn.Module:
    return models.DeepGCNLayer(conv(), nn.BatchNorm1d(WIDTH), nn.ReLU(), block=block)


class _Dense(nn.Module):
    """Three dense blocks, which grow."""

    def __init__(self) -> None:
        super().__init__()
        sizes = range(WIDTH, 4 * WIDTH, WIDTH)
        self.layers = nn.ModuleList(
            models.DeepGCNLayer(GCNConv(size, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), block="dense") for size in sizes
        )
        self.last = nn.Linear(4 * WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, edge_index)
        return self.last(x)


class _Remembering(nn.Module):
    """Attention of each layer over all layers before (as in the example of DNAConv)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layers = nn.ModuleList(DNAConv(WIDTH, heads=2, groups=2) for _ in range(LAYERS))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        every = self.first(x).relu()[:, None]
        for layer in self.layers:
            every = torch.cat([every, layer(every, edge_index).relu()[:, None]], dim=1)
        return self.last(every[:, -1])


class _Reversible(nn.Module):
    """Groups of features that are added to one after another."""

    def __init__(self, groups: int, disable: bool) -> None:
        super().__init__()
        conv = nn.ModuleList

        def block() -> nn.Module:
            return GroupAddRev(conv(_Convolved(WIDTH // groups) for _ in range(groups)), disable=disable)

        self.layers = nn.ModuleList(block() for _ in range(LAYERS))
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, edge_index)
        return self.last(x)


class _Convolved(nn.Module):
    """norm, activation, convolution."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(size), GCNConv(size, size)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(self.norm(x).relu(), edge_index)


class _Directional(nn.Module):
    """The blocks of DimeNet++ on given distances, angles and triplets."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU()
        self.first = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(InteractionPPBlock(WIDTH, 6, 5, 3, 4, 1, 2, act) for _ in range(2))
        self.outputs = nn.ModuleList(
            OutputPPBlock(4, WIDTH, WIDTH, CLASSES, 1, act, "glorot_orthogonal") for _ in range(3)
        )
        self.register_buffer("target", edges()[1])
        self.register_buffer("from_", torch.arange(24) % len(EDGES[0]))
        self.register_buffer("into", torch.arange(24).flip(0) % len(EDGES[0]))

    def forward(self, distances: Tensor, angles: Tensor) -> Tensor:
        x = self.first(distances).relu()
        made = self.outputs[0](x, distances, self.target, num_nodes=NODES)
        for block, output in zip(self.blocks, self.outputs[1:], strict=False):
            x = block(x, distances, angles, self.from_, self.into)
            made = made + output(x, distances, self.target, num_nodes=NODES)
        return made.sum(0)


class _Vectors(nn.Module):
    """The layers of ViSNet on given directions: scalars and vectors of nodes, features of edges."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.edge, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(4, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layers = nn.ModuleList(
            ViS_MP(2, WIDTH, 5.0, None, False, last_layer=last) for last in (False, False, True)
        )

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, distances: Tensor, directions: Tensor
    ) -> Tensor:
        x, f = self.first(x), self.edge(edge_attr)
        v = torch.zeros(x.size(0), 3, x.size(1))
        for layer in self.layers[:-1]:
            a, b, c = layer(x, v, edge_index, distances, f, directions)
            x, v, f = x + a, v + b, f + c
        a, b, _ = self.layers[-1](x, v, edge_index, distances, f, directions)
        x, v = x + a, v + b
        return self.last(x + v.square().sum(1))


def _mlp(ins: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(ins, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


NETS: dict[str, Net] = {
    "gcn": _net("GCN", 0, "none: relu(norm(A h W)) three times"),
    "gcn_concatenated": _net("GCN", 1, "cat(h1, h2, h3)", jk="cat"),
    "gcn_maximum": _net("GCN", 0, "none: the largest of three layers", jk="max"),
    "gcn_lstm": _net("GCN", 0, "none: attention over layers, by an LSTM, and a weighted sum of them", jk="lstm"),
    # Read as 3 at first: where W h is added to a linear image, as here and in three layers below, the sum is one layer.
    "sage": _net("GraphSAGE", 0, "none: W h + V (mean of neighbours) in each layer is linear"),
    "gin": _net("GIN", 3, "mlp((1 + e) h + sum of neighbours): the sum is a join, the perceptron a map", "mix 3"),
    "gat": _net("GAT", 0, "none: attention over neighbours and the node itself", heads=2),
    "gat_residual": _net("GAT", 3, "P h + attention over neighbours", "attn 3", heads=2, residual=True, v2=True),
    "pna": _net(
        "PNA",
        3,
        "cat(h, aggregates of messages) in each layer: concat",
        aggregators=["mean", "max", "std"],
        scalers=["identity", "attenuation"],
        deg=torch.tensor([0, 0, 5, 2]),
    ),
    "edge_cnn": _net("EdgeCNN", 0, "none: the largest of mlp(h_i, h_j - h_i)"),
    "deep_res_plus": _layers(
        partial(_deep, "res+", lambda: GCNConv(WIDTH, WIDTH)), 3, "h + A relu(norm(h)) W", "mlp 3", act=same
    ),
    "deep_res": _layers(
        partial(_deep, "res", lambda: GCNConv(WIDTH, WIDTH)), 3, "h + relu(norm(A h W))", "mlp 3", act=same
    ),
    "deep_plain": _layers(partial(_deep, "plain", lambda: GCNConv(WIDTH, WIDTH)), 0, "none", act=same),
    "deep_dense": Net(lambda: measured(_Dense()), graph, 3, "cat(h, relu(norm(A h W)))", "mlp 3"),
    "deep_gen": _layers(
        partial(_deep, "res+", lambda: GENConv(WIDTH, WIDTH, aggr="softmax", learn_t=True, num_layers=2)),
        6,
        "h + mlp(a + aggregate(a)), a = relu(norm(h)): a join, and one nested in its branch",
        act=same,
    ),
    "gen": _layers(partial(GENConv, WIDTH, WIDTH), 3, "mlp(h + aggregate(h))"),
    "gcnii": _layers(
        partial(GCN2Conv, WIDTH, alpha=0.1, theta=0.5, layer=2),
        6,
        "z = 0.9 A h + 0.1 start, then (1 - b) z + b z W, in each layer",
        again=True,
    ),
    "gcnii_two_weights": _layers(
        partial(GCN2Conv, WIDTH, alpha=0.1, theta=0.5, layer=2, shared_weights=False),
        6,
        "as gcnii, start with weights of its own",
        again=True,
    ),
    "appnp": Net(
        lambda: Layers(partial(APPNP, 2, 0.2), act=same),
        graph,
        6,
        "0.8 A h + 0.2 e, twice in each of 3 layers: e is added again",
    ),
    "antisymmetric": _layers(
        partial(AntiSymmetricConv, WIDTH, num_iters=2),
        6,
        "h + e tanh(W h + A h V), twice in each layer",
        "mlp 6",
        act=same,
    ),
    "arma": _layers(
        partial(ARMAConv, WIDTH, WIDTH, num_stacks=1, num_layers=2),
        3,
        # 6 at first: in the first of both e is h, and both are linear in it.
        "relu(A h W + V e), twice in each layer: e is added again in the second",
    ),
    "cheb": _layers(partial(ChebConv, WIDTH, WIDTH, K=3), 0, "none that is told: sums of linear images of h"),
    "tag": _layers(partial(TAGConv, WIDTH, WIDTH, K=2), 0, "none that is told: W0 h + W1 A h + W2 A A h is linear"),
    "gated_graph": _layers(
        partial(GatedGraphConv, WIDTH, 2), 6, "GRUCell(A h W, h), twice in each layer: gated", "mlp 6", act=same
    ),
    "frequency": _layers(partial(FAConv, WIDTH, eps=0.3), 3, "sum of a(h) h_j + 0.3 start", again=True),
    "gated_residual": _layers(partial(ResGatedGraphConv, WIDTH, WIDTH), 3, "W h + gated messages: a projected skip"),
    "transformer": _layers(partial(TransformerConv, WIDTH, WIDTH // 2, heads=2), 3, "W h + attention", "attn 3"),
    "transformer_gated": _layers(
        partial(TransformerConv, WIDTH, WIDTH // 2, heads=2, beta=True), 3, "b W h + (1 - b) attention, b made of both"
    ),
    "crystal": _layers(partial(CGConv, WIDTH), 3, "h + messages", act=same),
    "crystal_edges": _layers(
        partial(CGConv, WIDTH, dim=4, batch_norm=True), 3, "h + messages", edge_attr=True, act=same
    ),
    "film": _layers(partial(FiLMConv, WIDTH, WIDTH), 3, "relu(g(h) W h + b(h)) + messages: no skip"),
    "graph_conv": _layers(partial(GraphConv, WIDTH, WIDTH), 0, "none: W h + V (sum of neighbours) is linear"),
    "cluster": _layers(partial(ClusterGCNConv, WIDTH, WIDTH, diag_lambda=0.1), 0, "none: W h + V A h is linear"),
    "attention_v2": _layers(partial(GATv2Conv, WIDTH, WIDTH, residual=True), 3, "P h + attention", "attn 3"),
    "edge_conv": _layers(
        lambda: _Plus(EdgeConv(_mlp(2 * WIDTH))), 3, "h + max of mlp(h_i, h_j - h_i)", "mlp 3", act=same
    ),
    "gin_edges": _layers(lambda: GINConv(_mlp(), train_eps=True), 3, "mlp((1 + e) h + sum of neighbours)", "mix 3"),
    "gps": _layers(
        lambda: GPSConv(WIDTH, GCNConv(WIDTH, WIDTH), heads=2, norm="batch_norm"),
        12,  # read as 6 at first: the sums that are normed are inside of the branches
        "norm(h + conv) + norm(h + attn): no skip, and a join inside of each; then h + mlp",
        act=same,
    ),
    "gps_layer_norm": _layers(
        lambda: GPSConv(WIDTH, GCNConv(WIDTH, WIDTH), heads=2, norm="layer_norm", norm_kwargs={"mode": "node"}),
        12,
        "norm(h + conv) + norm(h + attn): no skip, and a join inside of each; then h + mlp",
        act=same,
    ),
    # Attention 3 at first: that of the first layer is over one.
    "jumping": Net(lambda: measured(_Remembering()), graph, 3, "cat(all layers, attention over them)", "attn 2, mlp 1"),
    "reversible": Net(partial(_Reversible, 2, True), graph, 6, "y1 = x1 + f(x2), y2 = x2 + g(y1) in 3 blocks", "mlp 6"),
    "dimenet": Net(
        _Directional,
        lambda: {"distances": torch.randn(len(EDGES[0]), 4), "angles": torch.randn(24, 12)},
        9,
        "in each of 2 blocks 1 nested before, h + act(lin(...)), 2 after; a sum of the outputs of 3 points",
    ),
    "visnet": Net(
        _Vectors,
        partial(
            graph,
            edge_attr=lambda: torch.randn(len(EDGES[0]), 4),
            distances=lambda: torch.rand(len(EDGES[0])),
            directions=lambda: torch.randn(len(EDGES[0]), 3),
        ),
        7,
        "3 layers add to scalars, 2 of them to edges, 2 to vectors, which start with zeros",
    ),
    "attentive_fp": Net(
        lambda: models.AttentiveFP(WIDTH, WIDTH, CLASSES, edge_dim=4, num_layers=2, num_timesteps=2),
        partial(
            graph, edge_attr=lambda: torch.randn(len(EDGES[0]), 4), batch=lambda: torch.zeros(NODES, dtype=torch.long)
        ),
        4,
        "relu(GRUCell(elu(attention), h)): 2 on atoms, 2 on the molecule, between them a sum over atoms",
        "attn 4",
    ),
    "sgformer": Net(
        lambda: measured(
            models.SGFormer(WIDTH, WIDTH, CLASSES, trans_num_layers=2, gnn_num_layers=3, trans_dropout=0.0)
        ),
        partial(graph, batch=lambda: torch.zeros(NODES, dtype=torch.long)),
        8,  # read as 6 at first: of (h + attn) / 2 the attention has a sum of its own inside, twice
        "(h + attn) / 2 twice in one tower, 3 layers in the other that all add to its start, and the sum of both",
    ),
    "polynormer": Net(
        lambda: measured(models.Polynormer(WIDTH, 6, CLASSES, local_layers=3, global_layers=2, heads=2)),
        partial(graph, batch=lambda: torch.zeros(NODES, dtype=torch.long)),
        2,
        # 7 at first: A h V + W h is linear, nothing mixes in the norm of a product, and only of the first layer all
        # passes the sum of 0.1 norm(g(h) x) and 0.9 x.
        "0.1 norm(g(h) x) + 0.9 x with x made of h, which is without a skip, in the first of 3 layers; the sum of all",
    ),
    "graph_unet": Net(
        lambda: models.GraphUNet(WIDTH, WIDTH, CLASSES, depth=2), graph, 2, "what came down plus what comes back up"
    ),
    "linkx": Net(
        lambda: models.LINKX(NODES, WIDTH, WIDTH, CLASSES, num_layers=2),
        graph,
        1,
        # 2 at first: of the nodes nothing but an image is added, which is made of another input.
        "h + W h of the edges, to which x + V x of the nodes is added",
    ),
    "point_gnn": Net(
        lambda: _Points(),
        lambda: {"x": torch.randn(NODES, WIDTH), "pos": torch.randn(NODES, 3), "edge_index": edges()},
        3,
        "h + mlp(max of messages)",
        "mlp 3",
    ),
}
NETS["local_extremum"] = _layers(partial(LEConv, WIDTH, WIDTH), 0, "none: W h + sum of (U h_i - V h_j) is linear")
# None at first: what is gathered from neighbours mixes, also without weights, beside a multiple of h itself.
NETS["simple_spectral"] = _layers(partial(SSGConv, WIDTH, WIDTH, 0.1, 2), 3, "0.1 h + 0.45 (A h + A A h)", "mix 6")
NETS["mix_hop"] = Net(lambda: _Hops(), graph, 0, "none: cat of linear images of h")


class _Hops(nn.Module):
    """Layers whose features are of several powers of the adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([MixHopConv(WIDTH, 4), MixHopConv(WIDTH, 4)])
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, edge_index).relu()
        return self.last(x)


class _Plus(nn.Module):
    """h + f(h)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return x + self.layer(x, edge_index)


class _Points(nn.Module):
    """Layers on points with places."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PointGNNConv(_mlp_of(WIDTH, 3), _mlp_of(WIDTH + 3, WIDTH), _mlp_of(WIDTH, WIDTH)) for _ in range(3)
        )
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, pos: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, pos, edge_index)
        return self.last(x)


def _mlp_of(ins: int, outs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(ins, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outs))
