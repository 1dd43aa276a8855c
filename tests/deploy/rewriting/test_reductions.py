"""Means, sums, pooling and norms compute what they computed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting_cases import FOR_VULKAN, FOR_XNNPACK, IMAGE, TOKENS, Call, changed, traced
from torch import Tensor, nn

from lightning_prune.deploy.backends import XNNPACK, Vulkan
from lightning_prune.deploy.rewriting import Rewrite, rewritten


class TestReductions:
    @pytest.mark.parametrize("dims", [(2, 3), (-1, -2), (1,), (0, 2), (1, 2, 3), (3,), -1])
    @pytest.mark.parametrize("keepdim", [False, True])
    @pytest.mark.parametrize("reduce", [torch.mean, torch.sum])
    def test_means_and_sums(self, reduce: Callable[..., Tensor], dims: Any, keepdim: bool):
        left = changed(Call(lambda x: reduce(x, dims, keepdim)), (torch.randn(IMAGE),))
        is_kept = reduce is torch.mean and dims == (2, 3) and keepdim
        assert not (left & {"sum.dim_IntList"} or (left & {"mean.dim"} and dims not in [(2, 3), (-1, -2)])) or is_kept

    def test_an_image_is_pooled_for_every_backend(self):
        model = Call(lambda x: x.mean((2, 3)))
        assert changed(model, (torch.randn(IMAGE),), tuple(XNNPACK().rewrites())) == {
            "adaptive_avg_pool2d.default",
            "reshape.default",
        }

    @pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d((3, 2), 2, (1, 0))])
    def test_average_pooling_without_counting_its_padding(self, pool: nn.AvgPool2d):
        program = rewritten(traced(pool, (x := torch.randn(IMAGE),)), FOR_XNNPACK)
        (node,) = [n for n in program.graph.nodes if str(n.target) == "aten.avg_pool2d.default"]
        assert node.args[3:] == ([0, 0], False, False)
        torch.testing.assert_close(program.module()(x), pool(x))

    def test_one_window_over_everything_is_a_mean(self):
        assert changed(nn.AvgPool2d(9, ceil_mode=True), (torch.randn(IMAGE),)) == {"mean.dim"}
        assert changed(nn.AvgPool2d(3, ceil_mode=True), (torch.randn(IMAGE),)) == {"avg_pool2d.default"}

    def test_a_ceiling_that_changes_nothing_is_left_out(self) -> None:
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        program = rewritten(traced(pool, (torch.randn(IMAGE),)), FOR_XNNPACK)
        (node,) = (n for n in program.graph.nodes if n.op == "call_function")
        assert node.args[1:] == ([2, 2], [2, 2], [0, 0], False, False)
        torch.testing.assert_close(program.module(check_guards=False)(x := torch.randn(IMAGE)), pool(x))

    @pytest.mark.parametrize("pool", [F.max_pool1d, F.avg_pool1d, F.max_pool2d])
    def test_pooling_without_a_stride_is_given_one(self, pool: Any) -> None:
        x = torch.randn(IMAGE if pool is F.max_pool2d else TOKENS)
        program = rewritten(traced(Call(lambda x: pool(x, 2)), (x,)), Vulkan().rewrites())
        (node,) = (n for n in program.graph.nodes if n.op == "call_function")
        assert list(node.args[2]) == list(node.args[1])
        torch.testing.assert_close(program.module(check_guards=False)(x), pool(x, 2))

    @pytest.mark.parametrize("size", [2, 3])
    @pytest.mark.parametrize("shape", [IMAGE, TOKENS])
    def test_a_local_response_norm_has_no_pooling_of_volumes(self, size: int, shape: tuple[int, ...]) -> None:
        left = changed(nn.LocalResponseNorm(size, alpha=0.5), (3 * torch.randn(shape),), tuple(Vulkan().rewrites()))
        assert "avg_pool2d.default" in left
        assert "avg_pool3d.default" not in left

    @pytest.mark.parametrize("window", [{"stride": (2, 1, 1)}, {"padding": (1, 0, 0)}, {"ceil_mode": True}])
    def test_pooling_along_depth_alone_is_that_of_an_image(self, window: dict[str, Any]) -> None:
        options: dict[str, Any] = {"stride": 1} | window
        pool = nn.AvgPool3d((3, 1, 1), **options)
        x = torch.randn(2, 3, 7, 4, 5)
        assert "avg_pool3d.default" not in changed(pool, (x,), tuple(Vulkan().rewrites()))
        whole = nn.AvgPool3d(2)
        assert "avg_pool3d.default" in changed(whole, (x,), tuple(Vulkan().rewrites()))

    @pytest.mark.parametrize("rewrites", [FOR_XNNPACK, FOR_VULKAN])
    @pytest.mark.parametrize("count", [1, 3, 5, 8])
    def test_adaptive_pooling_of_a_sequence(self, rewrites: tuple[Rewrite, ...], count: int):
        x = torch.randn(2, 3, 8)
        left = changed(Call(lambda x: F.adaptive_avg_pool1d(x, count)), (x,), rewrites)
        assert "linear.default" in left
        assert not any("adaptive" in name for name in left)

    def test_integers_and_other_dtypes_stay(self):
        assert changed(Call(lambda x: x.sum(1)), (torch.arange(12).reshape(3, 4),)) == {"sum.dim_IntList"}
        assert changed(Call(lambda x: x.mean(1, dtype=torch.float64)), (torch.randn(3, 4),)) == {"mean.dim"}

    @pytest.mark.parametrize("shape", [(8,), (5, 8)])
    @pytest.mark.parametrize("affine", [True, False])
    def test_layer_norms(self, shape: tuple[int, ...], affine: bool):
        norm = nn.LayerNorm(list(shape), elementwise_affine=affine, eps=0.1)
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        assert "layer_norm.default" not in changed(norm, (10 + 3 * torch.randn(TOKENS),))
