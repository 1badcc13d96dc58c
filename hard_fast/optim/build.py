"""Optimizers for one network's trainable parameters, and gradient clipping."""

import logging
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from hard_fast.optim.eight_bit import eight_bit_rules
from hard_fast.optim.flat import FlatOptimizer, Rule, lion_rule
from hard_fast.optim.schedule import ConstantRateConfig, RateConfig
from hard_fast.optim.standstill import StandstillConfig
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.cycle import Cycle, within

_Beta = Annotated[float, Field(ge=0, lt=1)]
_FUSED_DEVICES = {"cpu", "cuda"}
_log = logging.getLogger(__name__)
_EPS = 1e-8  # torch's and bitsandbytes' default for Adam


class OptimConfig(Config):
    """An optimizer, its learning rate's course and its clipping.

    `adam` and `sgd` add the weight decay to the gradient (L2); the others shrink the weights by
    lr * weight_decay at each step (decoupled). `lion_auto` is `lion8bit` on a GPU for which
    bitsandbytes has code, else `lion`: on a CPU 8-bit steps take many times longer.
    """

    kind: Literal["adam", "adamw", "sgd", "lion", "lion8bit", "lion_auto", "adamw8bit"] = "adam"
    lr: float = Field(gt=0, allow_inf_nan=False)
    weight_decay: Annotated[float | Cycle, within(least=0.0)] = 0.0
    # None: the kind's usual ones, (0.9, 0.99) for lion and (0.9, 0.999) for adam.
    betas: tuple[_Beta, _Beta] | None = None
    momentum: float = Field(default=0.9, ge=0, lt=1)  # sgd only
    nesterov: bool = False  # sgd only
    # Total gradient norm; None: no clipping.
    clip_norm: Annotated[float | Cycle, within(above=0.0)] | None = None
    # Steps whose gradients make one update, their mean; a cycle's is rounded to a whole number. So
    # the batch that is learned from grows and shrinks, while steps, epochs and rates count those
    # that are loaded. A run that ends within such a group learns from what there is.
    update_every: Annotated[int | Cycle, within(least=1)] = 1
    # Where networks take turns: whether each turn of this one begins without moments, and with
    # nothing that `standstill` took from the rate.
    fresh_turns: bool = False
    # Lower the rate where the network's own loss stands still, on top of what `rate` says.
    standstill: StandstillConfig | None = None
    # Whether weight decay falls on tensors with fewer than two dimensions too. None: with adam
    # only, since the papers' L2 falls on every parameter.
    decay_norm_and_bias: bool | None = None
    rate: RateConfig = ConstantRateConfig()
    # Of lr, by the first part of parameters' names: {"parts.0" = 0.002} slows down a composition's
    # first part.
    lr_factors: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}

    @model_validator(mode="after")
    def _uses_every_setting(self) -> "OptimConfig":
        for name in ("betas",) if self.kind == "sgd" else ("momentum", "nesterov"):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} = {value!r}: kind = {self.kind!r} does not use it; leave it out"
                )
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = True: needs momentum > 0")
        return self


def build_optimizer(
    config: OptimConfig, parameters: Iterable[tuple[str, nn.Parameter]]
) -> Optimizer:
    """An optimizer of the parameters that require gradients now.

    One group with weight decay and one without, an empty one left out. Where the parameters are
    on a CPU or CUDA device, torch's own kinds are fused. Lion and the 8-bit kinds move the
    parameters into one buffer per group, in their own memory order. The 8-bit kinds keep 32-bit
    state of tensors with fewer than two dimensions or 4096 elements.

    Args:    parameters: as `named_parameters` yields them; the names go into the state dict.
    Raises:  ValueError if nothing requires gradients, or if bitsandbytes cannot serve the device.
    """
    trainable = [(name, p) for name, p in parameters if p.requires_grad]
    if not trainable:
        raise ValueError(f"optim.kind = {config.kind!r}: no parameter requires gradients")
    groups = _groups(config, trainable)
    usual_betas = (0.9, 0.99) if config.kind.startswith("lion") else (0.9, 0.999)
    shared = {"lr": config.lr, "betas": config.betas or usual_betas}
    is_fused = {p.device.type for _, p in trainable} <= _FUSED_DEVICES
    match config.kind:
        case "adam" | "adamw":
            adam = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
            return _same_layout(adam(groups, **shared, fused=is_fused))
        case "sgd":
            sgd = torch.optim.SGD(
                groups,
                lr=config.lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                fused=is_fused,
            )
            sgd.register_step_pre_hook(_start_momentum)
            return _same_layout(sgd)
        case _:
            rules = _flat_rules(config.kind, trainable[0][1].device)
            return FlatOptimizer(groups, *rules, **shared, eps=_EPS)


def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """[] the 2-norm of all gradients together; finite only where each of them is."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def clip_(
    parameters: Iterable[nn.Parameter], max_norm: float, norm: Tensor | None = None
) -> Tensor:
    """Scale the gradients in place so that their total 2-norm is at most `max_norm`.

    Nothing waits for the device. A norm that is not finite leaves only zeros and NaN behind.

    Args:    norm: [] what `total_norm` found, if that is known.
    Returns: [] the total norm before clipping, on the gradients' device.
    """
    parameters = list(parameters)
    norm = total_norm(parameters) if norm is None else norm
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _groups(config: OptimConfig, trainable: list[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    decays_all = config.decay_norm_and_bias
    if decays_all is None:
        decays_all = config.kind == "adam"
    decayed = [(name, p) for name, p in trainable if decays_all or p.ndim >= 2]
    rest = [(name, p) for name, p in trainable if not (decays_all or p.ndim >= 2)]
    decay = config.weight_decay
    decay = decay.ends if isinstance(decay, Cycle) else decay
    groups = []
    for prefix, factor in [*config.lr_factors.items(), ("", 1.0)]:
        for members, weight_decay in ((decayed, decay), (rest, 0.0)):
            own = [(n, p) for n, p in members if _factor_key(config, n) == prefix]
            if own:
                groups.append({"params": own, "weight_decay": weight_decay, "lr_factor": factor})
    found = {_factor_key(config, name) for name, _ in trainable}
    if unused := sorted(config.lr_factors.keys() - found):
        raise ValueError(f"lr_factors: no parameter that learns begins with {unused[0]!r}")
    return groups


def _factor_key(config: OptimConfig, name: str) -> str:
    """The longest of the configured beginnings of a parameter's name, or none."""
    fitting = [key for key in config.lr_factors if f"{name}.".startswith(f"{key}.")]
    return max(fitting, key=len, default="")


def _flat_rules(kind: str, device: torch.device) -> tuple[Rule] | tuple[Rule, Rule]:
    """Lion's or an 8-bit kind's rule and, where they need one, that of small tensors."""
    if kind == "lion" or (kind == "lion_auto" and device.type != "cuda"):
        return (lion_rule(),)
    try:
        return eight_bit_rules("adam" if kind == "adamw8bit" else "lion", device)
    except (ImportError, RuntimeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        missing = f"bitsandbytes has no code for {device.type!r} here ({reason})"
        if kind != "lion_auto":
            raise ValueError(
                f"optim.kind = {kind!r}: {missing}; install it, or use "
                f"{kind.removesuffix('8bit')!r}"
            ) from None
        _log.warning("optim.kind = 'lion_auto' is 'lion': %s", missing)
        return (lion_rule(),)


def _same_layout(optimizer: Optimizer) -> Optimizer:
    """The optimizer, with gradients and loaded state always in their parameter's memory order.

    torch's fused CPU kernels walk raw memory, so different strides would silently mix up elements
    (torch 2.15). What `backward` leaves in `grad` has the right order; `autograd.grad` may not.
    """
    optimizer.register_step_pre_hook(_match_gradients)
    optimizer.register_load_state_dict_post_hook(_match_state)
    return optimizer


def _match_gradients(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            grad = parameter.grad
            if grad is not None and grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(grad)


def _start_momentum(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Momentum starts at zero, which changes no sum.

    If a gradient scaler skips the first step, torch's fused SGD keeps memory that nothing was ever
    written to as its momentum (torch 2.15).
    """
    for group in optimizer.param_groups:
        learning = (p for p in group["params"] if p.grad is not None)
        for parameter in learning if group["momentum"] else ():
            if not optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _match_state(optimizer: Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            is_moment = isinstance(value, Tensor) and value.shape == parameter.shape
            if is_moment and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter).copy_(value)
