"""Real projects as a test: each fits as its own documentation writes it, with one callback more (`make projects`)."""

import importlib.util
from pathlib import Path

import torch


def _define_what_torchvision_registers() -> torch.library.Library | None:
    """Let torchvision be imported where its compiled operators are of another build of torch; nothing here calls them.

    torchvision 0.28 goes on without its operators when they do not load, and then fails when it registers the shape of
    ``nms``. Beside the CUDA build of torch that its wheel is made for, they load and nothing is done.
    """
    place = importlib.util.find_spec("torchvision")
    if place is None or place.origin is None:
        return None
    try:
        for binary in Path(place.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(binary))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


LIBRARY = _define_what_torchvision_registers()  # an operator lives as long as its library
