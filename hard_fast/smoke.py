"""A configuration shrunk to three steps: `smoke = true`."""

import re
from typing import Any

from hard_fast.runtime.configfile import Source, merge

_SMOKE_OPTIONS: dict[str, dict[str, Any]] = {
    "cnn": {"widths": [8, 8, 8]},
    "lenet5": {},
    "lenet5_half": {},
    "mlp": {"hidden": [16]},
    "resnet18_3x3": {"widths": [8, 8, 8, 8]},
    "vit_mnist": {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "mlp_dim": 16},
    "vit_cifar": {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "mlp_dim": 16},
    "vit_cifar_small": {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "mlp_dim": 16},
    "cosine": {},
    "tiny_vae": {"width": 4, "latent": 4, "num_levels": 1},
}
_SMOKE_BNEXT = {"widths": [8, 16], "depths": 1}
# Divides 28 and 32.
_SMOKE_PATCH_PX = 4
_SMOKE_AUTOENCODERS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 4, "latent": 4, "num_levels": 1, "num_blocks": 1},
    "vdvae": {
        "enc_blocks": "32x1,32d2,16d16,1x1",
        "dec_blocks": "1x1,16m1,16x1,32m16,32x1",
        "width": 16,
        "zdim": 2,
        "num_mixtures": 2,
        "train_from_block": 1,
    },
    "rqvae": {"width": 8, "multipliers": [1, 1], "latent": 8, "num_codes": 8, "norm_groups": 4},
}


def shrink(source: Source) -> Source:
    """The same run in seconds, if the tree asks for `smoke`: the same kinds, all of it tiny."""
    tree = source.tree
    if tree.get("smoke") is not True:
        return source
    small: dict[str, Any] = {"train": {**_table(tree, "train"), "steps": 3, "batch_size": 8}}
    # Nothing is left to cut, to trace or to let grow.
    for key in ("epochs", "augmentor_batch_size", "accumulate", "profile_steps", "resolution"):
        small["train"].pop(key, None)
    kind = _table(tree, "data").get("kind")
    if kind not in ("line", "synthetic"):
        is_grey = kind in ("mnist", "digits")
        small["data"] = {
            "kind": "synthetic",
            "size": 28 if is_grey else 32,
            "channels": 1 if is_grey else 3,
            "num_train": 32,
            "num_test": 16,
        }
    if _table(tree, "schedule").get("kind") == "threshold":
        # Three steps are to see both phases.
        turns = {"consecutive": 1, "lag": 0, "max_student_steps": 1, "max_augmentor_steps": 1}
        small["schedule"] = {**_table(tree, "schedule"), **turns, "min_student_steps": 0}
    if _table(tree, "schedule").get("kind") == "alternate":
        turns = {"student_steps": 1, "augmentor_steps": 1}
        small["schedule"] = {**_table(tree, "schedule"), **turns}
    for key in ("student", "teacher"):
        if key in tree:
            small[key] = _small_role(_table(tree, key))
    if "objective" in tree:
        small["objective"] = _small_names(_table(tree, "objective"))
    if "augmentor" in tree:
        small["augmentor"] = _small_augmentor(_table(tree, "augmentor"))
    # Suites are of other pictures and classes.
    rest = {k: v for k, v in tree.items() if k not in small and k != "evaluation"}
    return Source(merge(rest, small), source.origin)


def _small_role(network: dict[str, Any]) -> dict[str, Any]:
    """A small network with the same part in the run; of several teachers, as many."""
    kept = {k: v for k, v in network.items() if k in ("num_classes", "watermark", "weight")}
    if "dropout" in network:
        kept["dropout"] = _small_names(network["dropout"])
    if isinstance(also := network.get("also"), list):
        kept["also"] = [_small_role(m) if isinstance(m, dict) else m for m in also]
    return {**_small_network(network), **kept}


def _small_network(network: dict[str, Any]) -> dict[str, Any]:
    name = str(network.get("name"))
    if name.startswith("bnext"):
        kept = {k: v for k, v in _table(network, "options").items() if k == "binary"}
        return {"name": name, "options": {**_SMOKE_BNEXT, **kept}}
    if name in _SMOKE_OPTIONS:
        # An objective may read the statistics of BatchNorm.
        kept = {k: v for k, v in _table(network, "options").items() if k == "batch_norm"}
        return {"name": name, "options": {**_SMOKE_OPTIONS[name], **kept}}
    if name.startswith("python:"):
        kept = {key: value for key, value in network.items() if key != "checkpoint"}
        options = _table(network, "options")
        if (trunk := str(options.get("trunk"))) in _SMOKE_OPTIONS:
            kept["options"] = {**options, "options": _SMOKE_OPTIONS[trunk]}
        return kept
    if name.startswith("cifar_resnet"):
        return {"name": "cifar_resnet20"}
    if "distilled" in name:
        sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": _SMOKE_PATCH_PX}
        return {"name": "deit_tiny_distilled_patch16_224", "options": sizes}
    # Without it a student has no submodels.
    kept = {k: v for k, v in _table(network, "options").items() if k == "drop_path_rate"}
    if "vit" not in name:
        return {"name": "test_resnet", "options": kept}
    return {"name": "test_vit", "options": {"patch_size": _SMOKE_PATCH_PX, **kept}}


def _small_names(value: Any) -> Any:
    """The same names of layers where networks have one block."""
    if isinstance(value, dict):
        return {key: _small_names(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_small_names(part) for part in value]
    return re.sub(r"^blocks\.\d+", "blocks.0", value) if isinstance(value, str) else value


def _small_augmentor(augmentor: Any) -> Any:
    if not isinstance(augmentor, dict):
        return augmentor
    if augmentor.get("kind") == "compose" and isinstance(augmentor.get("parts"), list):
        return {**augmentor, "parts": [_small_augmentor(part) for part in augmentor["parts"]]}
    if augmentor.get("kind") == "patch_mix":
        return {key: value for key, value in augmentor.items() if key != "patch_px"}
    if augmentor.get("kind") == "generator":
        return {**augmentor, "latent": 8, "width": 4}
    if augmentor.get("kind") != "autoencoder":
        return augmentor
    net = str(augmentor.get("net", "tiny"))
    kept = {key: value for key, value in augmentor.items() if key != "checkpoint"}
    options = {**_table(augmentor, "options"), **_SMOKE_AUTOENCODERS.get(net, {})}
    return {**kept, "options": options}


def _table(tree: dict[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, dict) else {}
