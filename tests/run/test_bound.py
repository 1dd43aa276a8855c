"""A model that has lost channels is seen in the shapes in which recipes were bound to it."""

import numpy as np
import torch
from torch import nn

from lightning_prune.compaction import Compaction, compact
from lightning_prune.criteria import Magnitude, Observations
from lightning_prune.graph import channel_groups
from lightning_prune.model import masks
from lightning_prune.run.bound import BoundModel

LEFT = [0, 2, 3, 5]
NAMES = ("0.weight", "0.bias", "2.weight")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    masks.attach(model, NAMES, is_structured=True)
    return model


def smaller() -> nn.Sequential:
    """The network without its hidden channels 1 and 4."""
    model = network()
    groups = channel_groups(model, (torch.zeros(1, 4),))
    (group,) = (group for group in groups if group.prunable)
    compact(model, Compaction.from_keep(groups, {group.name: LEFT}))
    return model


def test_a_whole_model_is_seen_as_it_is() -> None:
    model = network()
    bound = BoundModel(model, None)
    assert bound.removed is None
    assert all(torch.equal(mask, bound.masks()[name]) for name, mask in masks.read(model).items())
    assert bound.shape_now("0.weight", (6, 4)) == (6, 4)


def test_what_has_left_is_pruned_and_scores_lowest() -> None:
    before = {name: parameter.detach().numpy() for name, parameter in masks.dense_parameters(network()).items()}
    model = smaller()
    bound = BoundModel(model, None)
    assert bound.shape_now("0.weight", (6, 4)) == (4, 4)
    rows = np.isin(np.arange(6), LEFT)
    expected = {"0.weight": rows[:, None], "0.bias": rows, "2.weight": rows[None, :]}
    weights = {name: masks.dense_parameters(model)[name] for name in NAMES}
    scores = bound.scores(Magnitude(), weights, Observations())
    for name, kept in expected.items():
        kept = np.broadcast_to(kept, before[name].shape)
        np.testing.assert_array_equal(bound.masks()[name].numpy(), kept)
        np.testing.assert_array_equal(scores[name].numpy(), np.where(kept, np.abs(before[name]), -np.inf))
        np.testing.assert_array_equal(torch.cat(list(scores.chunks(name))).numpy(), scores[name].flatten().numpy())


def test_new_masks_are_cut_to_what_is_there() -> None:
    model = smaller()
    keep = torch.ones(6, 4, dtype=torch.bool)
    keep[3] = keep[4] = False
    BoundModel(model, None).write([("0.weight", keep)])
    assert masks.read(model)["0.weight"].all(dim=1).tolist() == [True, True, False, True]
