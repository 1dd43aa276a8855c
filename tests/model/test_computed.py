"""Which parameters a weight is computed from."""

import pytest
import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations

from lightning_prune.model.computed import recompute, shown_as, sources

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")

ORIGINALS = ("parametrizations.weight.original0", "parametrizations.weight.original1")


def test_sources_of_weights_that_are_computed_and_of_those_that_are_not() -> None:
    assert sources(nn.Linear(3, 2)) == ()
    assert sources(parametrizations.weight_norm(nn.Linear(3, 2))) == ORIGINALS
    assert sources(parametrizations.spectral_norm(nn.Linear(3, 2))) == ("parametrizations.weight.original",)
    assert sources(utils.weight_norm(nn.Linear(3, 2))) == ("weight_g", "weight_v")
    assert sources(utils.spectral_norm(nn.Linear(3, 2))) == ("weight_orig",)
    assert sources(utils.weight_norm(nn.LSTM(3, 2), "weight_hh_l0"), "weight_hh_l0") == (
        "weight_hh_l0_g",
        "weight_hh_l0_v",
    )


def test_a_parameter_is_shown_as_the_weight_that_is_made_of_it() -> None:
    assert shown_as("parametrizations.weight.original") == "weight"
    assert shown_as("a.parametrizations.bias.original1") == "a.bias"
    assert shown_as("a.parametrizations.weight.0._u") == "a.parametrizations.weight.0._u"
    assert shown_as("a.weight_g") == "a.weight_g"


def test_what_the_older_norms_keep_beside_the_parameters_is_computed_anew() -> None:
    for norm in (utils.weight_norm, utils.spectral_norm):
        layer = norm(nn.Linear(3, 2)).eval()
        layer(torch.zeros(1, 3))
        assert recompute(layer).keys() == {"weight"}
        assert torch.equal(recompute(layer)["weight"], layer.weight)
    assert recompute(nn.Linear(3, 2)) == {}
