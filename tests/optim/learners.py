"""A learner of one layer."""

import torch

from hard_fast.optim.build import OptimConfig
from hard_fast.optim.learner import Learner


def make(layer, *, keeps_gradients=False, **changes):
    config = OptimConfig(**{"kind": "sgd", "momentum": 0.0, "lr": 0.1} | changes)
    length = {"num_steps": 4, "num_steps_per_epoch": 2}
    return Learner(config, layer.named_parameters(), **length, keeps_gradients=keeps_gradients)


def give_gradient(layer, value):
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, value)


SCALED = [
    {"kind": "adam", "momentum": 0.9},
    {"kind": "adamw", "momentum": 0.9, "clip_norm": 0.5},
    {"kind": "sgd", "momentum": 0.9},
    {"kind": "sgd", "momentum": 0.9, "nesterov": True, "clip_norm": 0.5},
    {"kind": "lion", "momentum": 0.9},
    {"kind": "lion8bit", "momentum": 0.9, "clip_norm": 0.5},
]
