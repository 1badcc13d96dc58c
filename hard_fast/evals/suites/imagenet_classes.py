"""The classes of ImageNet in the order of a network's outputs, and other tables that timm ships."""

import json
from importlib.resources import files


def read_wnids(subset: str = "") -> tuple[str, ...]:
    """The 1000 WordNet identifiers in the order of the outputs, or the 200 of a subset, sorted.

    Args:    subset: "a" or "r": those of ImageNet-A or -R.
    """
    name = f"imagenet_{subset}_synsets.txt" if subset else "imagenet_synsets.txt"
    return tuple(_info(name).split())


def read_real_labels() -> list[list[int]]:
    """All right labels of each validation image of ImageNet, in the order of their numbers.

    Source:  Beyer et al. 2020, arXiv:2006.07159: google-research/reassessed-imagenet real.json.
    """
    return json.loads(_info("imagenet_real_labels.json"))


def _info(name: str) -> str:
    return (files("timm") / "data" / "_info" / name).read_text()
