"""Networks cut into cells: where the borders lie, and that the cells compute what the network computes."""

from typing import cast

import pytest
import torch
from compaction_cases import trained
from deploy_models import EXAMPLE, TwoInputs, small
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from lightning_prune.deploy.program.cells import Piece, cells_of
from lightning_prune.errors import ExportError

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


class Residual(nn.Module):
    """A depthwise convolution in a branch, norms, and activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.expand, self.depth = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.project, self.head = nn.Conv2d(32, 16, 1), nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.stem(image)).relu_()
        y = self.depth(self.expand(x).relu_()).relu_()
        x = self.project(y) + x
        return self.head(x.relu_().mean((2, 3)))


class Attention(nn.Module):
    """Query, key and value beside each other, with their norm and a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        weights = (self.query(y) @ self.key(y).transpose(1, 2)).softmax(-1)
        x = x + self.out(weights @ self.value(y))
        return x + self.down(self.up(x).relu())


class Masked(nn.Module):
    """Layers that share a mask and a rotation, both computed of what says which places count, and a mean over these."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norms = nn.Embedding(10, 8), nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.queries, self.values, self.outs, self.hidden = (
            nn.ModuleList(nn.Linear(8, 8) for _ in range(3)) for _ in range(4)
        )

    def forward(self, tokens: Tensor, counts: Tensor) -> Tensor:
        x = self.embed(tokens)
        mask = counts[:, None, :].bool()
        turn = counts.cumsum(-1)[:, :, None].float().cos()
        for norm, query, value, out, hidden in zip(
            self.norms, self.queries, self.values, self.outs, self.hidden, strict=True
        ):
            y = norm(x)
            turned = query(y) * turn
            weights = (turned @ turned.transpose(1, 2)).masked_fill(~mask, -9.0).softmax(-1)
            x = x + out(weights @ value(y))
            x = x + hidden(x).relu()
        return (x * counts[:, :, None]).sum(1)


class Splitting(nn.Module):
    """Tuples and views cross every border that could be drawn through it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(4, 8)
        self.third, self.fourth = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        left, right = self.first(x).relu().chunk(2, -1)
        y = self.second(left.add_(1)) + self.second(right)
        return {"out": self.fourth(self.third(y).relu()), "sum": y.sum()}


def run(pieces: list[Piece], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Run cells one after the other: each takes by name what those before it made."""
    network = cast(fx.GraphModule, pieces[0].module)
    made = {node.name: x.clone() for node, x in zip(_placeholders(network), inputs, strict=False)}
    outputs: list[Tensor] = []
    for piece in pieces:
        module = cast(fx.GraphModule, piece.module)
        names = [node.name for node in _placeholders(module)]
        (last,) = (node for node in module.graph.nodes if node.op == "output")
        outputs = list(module(*(made[name].clone() for name in names)))
        made |= {node.name: value for node, value in zip(last.args[0], outputs, strict=True)}
    return list(made.values())


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (small().eval(), (EXAMPLE,)),
        (trained(Residual()), (torch.randn(1, 3, 8, 8),)),
        (trained(Attention()), (torch.randn(1, 6, 8),)),
        (trained(Masked()), (torch.randint(0, 10, (2, 6)), torch.ones(2, 6))),
        (trained(Splitting()), (torch.randn(2, 6),)),
    ],
    ids=lambda value: type(value).__name__,
)
@torch.no_grad()
def test_they_compute_what_the_network_computes(model: nn.Module, inputs: tuple[Tensor, ...]):
    model.eval()
    values = run(cells_of(model, inputs), inputs)
    for expected in tree_leaves(model(*(x.clone() for x in inputs))):
        assert any(x.shape == expected.shape and torch.allclose(x, expected, atol=1e-5) for x in values)


def kinds(model: nn.Module, *inputs: Tensor) -> list[list[str]]:
    return [[name for name, *_ in piece.weights] for piece in cells_of(model.eval(), inputs)]


class TestBorders:
    def test_a_convolution_has_its_norm_its_activation_and_the_sum_with_it(self):
        pieces = cells_of(Residual().eval(), (torch.randn(1, 3, 8, 8),))
        names = [[name for name, *_ in piece.weights] for piece in pieces]
        assert names == [["stem.weight"], ["expand.weight"], ["depth.weight"], ["project.weight"], ["head.weight"]]
        assert [piece.label for piece in pieces[:4]] == [
            "conv2d+relu_",
            "conv2d+relu_",
            "conv2d+relu_",
            "conv2d+add+relu_+mean",
        ]
        assert [piece.kernels[0].kind for piece in pieces] == ["window", "point", "grouped", "point", "point"]
        assert [piece.widths[0] for piece in pieces] == [(16, 3), (32, 16), (32, 1), (16, 32), (5, 16)]
        assert pieces[2].kernels[0].area == 9 * 64
        assert [len(piece.inputs) for piece in pieces] == [1, 1, 1, 2, 1]

    def test_query_key_and_value_are_in_one_cell_with_their_norm(self):
        names = kinds(nn.Sequential(nn.Linear(8, 8), Attention()), torch.randn(1, 6, 8))
        assert names == [
            ["0.weight"],
            ["1.query.weight", "1.key.weight", "1.value.weight"],
            ["1.out.weight"],
            ["1.up.weight"],
            ["1.down.weight"],
        ]

    def test_what_all_layers_share_of_the_input_holds_no_border_up(self):
        pieces = cells_of(Masked().eval(), (torch.zeros(1, 6, dtype=torch.long), torch.ones(1, 6)))
        names = [[name for name, *_ in piece.weights] for piece in pieces]
        layers = [[[f"queries.{n}.weight", f"values.{n}.weight"], [f"outs.{n}.weight"]] for n in range(3)]
        assert names == [each for n, own in enumerate(layers) for each in (*own, [f"hidden.{n}.weight"])]

    @torch.no_grad()
    def test_tuples_stay_with_who_makes_them(self):
        for piece in cells_of(Splitting().eval(), (torch.randn(2, 6),)):
            assert all(isinstance(shape, tuple) for shape, _ in piece.inputs)

    def test_several_inputs(self):
        inputs = (torch.randint(0, 10, (2, 3)), torch.randn(2, 3, 4))
        dtypes = {dtype for piece in cells_of(TwoInputs().eval(), inputs) for _, dtype in piece.inputs}
        assert torch.int64 in dtypes

    def test_nothing_that_computes(self):
        with pytest.raises(ExportError, match="Sequential has no layer whose weights compute"):
            cells_of(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)).eval(), (torch.zeros(2, 4),))


def test_a_weight_that_is_computed_is_that_of_its_direction():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2)).eval()
    first, second = cells_of(model, (torch.zeros(1, 4),))
    assert (first.widths, second.widths) == (((6, 4),), ((2, 6),))
