"""Every architecture of the zoo: no crash, no hang, exact, and smaller by as much as its kind allows."""

import importlib.util

import pytest
import torch
from compaction_cases import half_of
from zoo import ZOO, Architecture

from lightning_prune.compaction import Compaction, CompactionReport, compact
from lightning_prune.graph import channel_groups

QUICK = {"DenseNet", "ShuffleNetV2", "Res2Net", "UNet", "TinyVit", "ConvTasNet", "BiLstm", "EinsumAttention"}

MOST_LEFT = {"conv": 0.35, "norm": 0.70, "recurrent": 0.35}
"""Share of the parameters that may be left with half of every prunable group gone."""

EXCUSED = {
    "GroupedShuffleNet": (
        0.40,
        "a grouped convolution loses whole convolution groups, so it shrinks in proportion only",
    ),
    "ResNeXt": (0.40, "a grouped convolution loses whole convolution groups, so it shrinks in proportion only"),
    "PoolFormer": (0.75, "has no projections to lose, and its patch embeddings make the normalised width"),
    "FocalNet": (0.80, "its modulation cuts one projection at the normalised width and at constants"),
    "TinyVit": (0.75, "its code computes the width of a head as the normalised width over the number of heads"),
}
"""More may be left here, and why."""


def compacted(architecture: Architecture) -> tuple[CompactionReport, dict[str, list[int]]]:
    model, args, kwargs = architecture.drawn()
    groups = channel_groups(model, args, kwargs)
    assert groups.unknown == ()
    keep = {name: kept for name, kept in half_of(groups).items() if len(kept) < groups[name].size}
    plan = Compaction.from_keep(groups, keep)
    report = compact(model, plan, args or None, example_kwargs=kwargs)
    fresh = plan.only(report.removed).rebuild(architecture.make())
    assert {name: p.shape for name, p in fresh.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    return report, keep


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(one, id=one.name, marks=() if one.name in QUICK else pytest.mark.slow) for one in ZOO],
)
def test_half_of_every_group_goes_exactly(architecture: Architecture) -> None:
    if architecture.is_imported and importlib.util.find_spec("transformers") is None:
        pytest.skip("needs the transformers package")
    report, _ = compacted(architecture)
    assert report.put_back == {}
    allowed, _ = EXCUSED.get(architecture.name, (MOST_LEFT[architecture.kind], ""))
    assert max(report.errors.values()) <= 1e-9
    assert report.parameters_after <= allowed * report.parameters_before


def test_the_zoo_is_large_and_its_names_are_unique() -> None:
    assert len({one.name for one in ZOO}) == len(ZOO) >= 40
    assert set(EXCUSED) | QUICK <= {one.name for one in ZOO}


@pytest.mark.slow
def test_attributes_and_all_survive_a_round_trip_through_json() -> None:
    architecture = next(one for one in ZOO if one.name == "TinyVit")
    model, args, _ = architecture.drawn()
    groups = channel_groups(model, args)
    report = compact(model, plan := Compaction.from_keep(groups, half_of(groups)), args)
    fresh = Compaction.from_json(plan.only(report.removed).to_json()).rebuild(architecture.make()).double().eval()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(*args), model(*args))
