"""Checkpoints of format 1, in which weight_orig stood beside weight_mask, still load, and their runs still go on."""

from pathlib import Path
from typing import Any

import packages
import pytest
import torch
from old_checkpoints import CASES, FOLDER, fitted
from support import MixedNet, Net, loader, outputs, trainer

from lightning_prune import PruningCallback, finalize
from lightning_prune.checkpoints.summary import summarize_checkpoint
from lightning_prune.model import masks

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    # an older Lightning says of the files that a newer one wrote them
    pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning v2.6"),
]

MASKED = [name for name in CASES if name != "average"]


def read(name: str) -> dict[str, Any]:
    return torch.load(FOLDER / f"{name}.ckpt", weights_only=True)


def saved_masks(name: str) -> dict[str, torch.Tensor]:
    state = read(name)["state_dict"]
    return {
        key.removesuffix("_mask"): mask for key, mask in state.items() if f"{key.removesuffix('_mask')}_orig" in state
    }


def by_hand(name: str) -> dict[str, torch.Tensor]:
    """The weights of the file, with zeros where its masks are."""
    state, found = read(name)["state_dict"], saved_masks(name)
    return {key: state[f"{key}_orig"] * mask for key, mask in found.items()}


def test_the_files_are_of_format_1() -> None:
    for name in CASES:
        assert read(name)["lightning_prune"]["version"] == 1
        assert sum(int((~mask).sum()) for mask in saved_masks(name).values()) > 0 or name == "every_event"


@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_and_ends_as_it_did(name: str, tmp_path: Path) -> None:
    if name == "guard" and packages.VERSION < (2, 6):
        pytest.skip(
            "Lightning before 2.6 takes the progress of 2.6's loops otherwise: it validates first, not at the end"
        )
    model, callback = fitted(name, tmp_path, ckpt_path=str(FOLDER / f"{name}.ckpt"), weights_only=True)
    end = torch.load(FOLDER / f"{name}.end.ckpt", weights_only=True)
    assert callback.sparsity == end["sparsity"]
    state = model.state_dict()
    assert list(state) == list(end["state"])
    for key, expected in end["state"].items():
        torch.testing.assert_close(state[key], expected)
        assert torch.equal(state[key] == 0, expected == 0), key


@pytest.mark.parametrize("name", MASKED)
def test_a_plain_module_is_validated(name: str, tmp_path: Path) -> None:
    model = CASES[name].model()
    model.validation_step = lambda *_: None
    run = trainer(tmp_path, PruningCallback(CASES[name].recipe))
    run.validate(model, loader(1), ckpt_path=str(FOLDER / f"{name}.ckpt"), verbose=False, weights_only=True)
    found = masks.read(model)
    assert {key: mask.tolist() for key, mask in found.items()} == {k: m.tolist() for k, m in saved_masks(name).items()}
    for key, weight in by_hand(name).items():
        assert torch.equal(masks.dense_parameters(model)[key], weight)


@pytest.mark.parametrize("name", ["element_mixin", "channel_mixin", "every_event", "average", "guard"])
def test_the_mixin_loads_it_and_finalizes(name: str) -> None:
    model = MixedNet.load_from_checkpoint(FOLDER / f"{name}.ckpt", width=4)
    assert masks.read(model).keys() == saved_masks(name).keys()
    for key, weight in by_hand(name).items():
        assert torch.equal(masks.dense_parameters(model)[key], weight)
    before = outputs(model)
    torch.testing.assert_close(outputs(finalize(model)), before)


def test_a_bare_state_dict_loads_into_a_masked_model() -> None:
    model, state = Net(width=4), read("channel")["state_dict"]
    masks.attach(model, saved_masks("channel"))
    model.load_state_dict(state)
    assert all(torch.equal(mask, saved_masks("channel")[key]) for key, mask in masks.read(model).items())


def test_a_summary_of_it() -> None:
    summary = summarize_checkpoint(FOLDER / "element.ckpt")
    assert [(t.name, t.is_masked) for t in summary.tensors if t.is_masked] == [
        ("first.weight", True),
        ("second.weight", True),
    ]
    assert summary.zeros == sum(int((~mask).sum()) for mask in saved_masks("element").values())
