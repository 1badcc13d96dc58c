"""The tree of a HARD run of 12 steps on synthetic digits; every phase happens in it."""

from typing import Any

TREE: dict[str, Any] = {
    "data": {"kind": "synthetic", "size": 16, "channels": 1, "num_train": 72, "num_test": 20},
    "student": {"name": "mlp", "options": {"hidden": [16]}},
    "teacher": {"name": "cnn", "options": {"widths": [4, 4, 4], "dropout": 0.0}},
    "augmentor": {"kind": "affine", "std": 0.1},
    "objective": {"kind": "hard"},
    "schedule": {
        "kind": "threshold",
        "l_min": 0.98,
        "l_max": 0.99,
        "consecutive": 1,
        "max_augmentor_steps": 2,
        "lag": 1,
    },
    "optim": {"lr": 1e-3},
    "augmentor_optim": {"lr": 0.01},
    "train": {
        "steps": 12,
        "batch_size": 16,
        "log_every": 2,
        "tensorboard": False,
        "device": "cpu",
    },
    "checkpoint": {"every_steps": 3},
}
