"""Multiply-accumulates of products that no layer does."""

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.model.summary import measure_macs, summarize


class ByHand(nn.Module):
    """Attention of two heads: products by ``@``, by einsum, or torch's own; then a table that is a parameter."""

    def __init__(self, way: str, has_bias: bool = True) -> None:
        super().__init__()
        self.way, self.table = way, nn.Parameter(torch.randn(2, 8, 3))
        self.query, self.key, self.value = (nn.Linear(8, 8, bias=has_bias) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (2, 4)).transpose(1, 2) for f in (self.query, self.key, self.value))
        if self.way == "torch's own":
            heads = nn.functional.scaled_dot_product_attention(q, k, v)
        elif self.way == "einsum":
            heads = torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v)
        else:
            heads = (q @ k.mT).softmax(-1) @ v
        return torch.bmm(heads.transpose(1, 2).flatten(2), self.table)


@pytest.mark.parametrize("way", ["torch's own", "einsum", "@"])
def test_products_of_an_attention_by_hand_count_where_its_heads_are_made(way: str) -> None:
    model, x = ByHand(way), torch.randn(2, 5, 8)
    projection, products, table = 2 * 5 * 8 * 8, 2 * 2 * 5 * 5 * 8, 2 * 5 * 8 * 3
    counted = measure_macs(model, x)
    assert counted.total == 3 * projection + products + table
    assert counted.of_products == {"value.weight": products}
    rows = {row.name: row.macs for row in summarize(model, x).layers}
    assert rows == {"": 0, "query": projection, "key": projection, "value": projection + products}
    assert counted.of_parameters(["value.bias", "value.weight"])["value.bias"] == products
    without = measure_macs(ByHand(way, has_bias=False), x).of_parameters(["value.weight"])
    assert without["value.weight"] == projection + products
