"""An optimizer whose weights and moments lie side by side, so that a step is a few launches."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Elements that share one scale in bitsandbytes' 8-bit state. Every tensor starts at a multiple of
# it, so that no block holds parts of two, and every view is aligned for vector loads.
BLOCK_SIZE = 256
_MIN_8BIT_ELEMENTS = 4096  # bitsandbytes' own bound


class Moment(NamedTuple):
    """What an optimizer remembers per weight, or per block of weights."""

    dtype: torch.dtype
    num_weights: int  # that share one entry


EVERY_WEIGHT = Moment(torch.float32, 1)


class Rule(NamedTuple):
    """How a stretch of weights moves.

    `update(weight, grad, moments, step, group)` changes the weight and the moments in place. All
    are 1-D; `step` counts from 1, and `group` holds lr, betas and so on.
    """

    moments: Mapping[str, Moment]
    update: Callable[[Tensor, Tensor, dict[str, Tensor], int, dict[str, Any]], None]


class _Slot(NamedTuple):
    """One parameter's place in the buffer of its group."""

    parameter: nn.Parameter
    start: int
    stop: int  # of the whole blocks it fills
    order: list[int]  # its dimensions as they lie in memory
    padding: Tensor | None


class FlatOptimizer(Optimizer):
    """Steps parameters that are views of one buffer per group and rule.

    Building it moves the parameters into those buffers, each in its own memory order, so that
    channels_last weights stay so. Nothing moves after that. Parameters without gradient are left
    untouched, with their moments, like in torch's own optimizers. State is saved per parameter.

    Args:    rule: of all tensors or, where `small` is given, of those with two or more dimensions
                 and at least 4096 elements; `small` is then the rule of the rest.
             is_joined: gather the gradients and step neighbours together. None: except on a CPU,
                 where launches cost little and caches like small tensors.
             defaults: of every group: lr, betas and what else the rules read.
    Raises:  ValueError if the parameters are not float32 on one device.
    """

    # [] fp32, not 0: a step leaves weights and moments as they are. The same attribute as that of
    # torch's fused optimizers.
    found_inf: Tensor | None = None

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        rule: Rule,
        small: Rule | None = None,
        *,
        is_joined: bool | None = None,
        **defaults: Any,
    ) -> None:
        self._rule, self._small, self._is_joined = rule, small, is_joined
        self._buffers: list[list[_Buffer]] = []
        super().__init__(groups, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take in a group; its parameters become views of new buffers."""
        super().add_param_group(param_group)
        parameters = self.param_groups[-1]["params"]
        first = self.param_groups[0]["params"][0]
        for parameter in parameters:
            if parameter.dtype != torch.float32 or parameter.device != first.device:
                raise ValueError(
                    f"a parameter is {parameter.dtype} on {parameter.device}: this optimizer needs "
                    f"torch.float32, all of it on {first.device}; use 'adamw'"
                )
        if self._is_joined is None:
            self._is_joined = first.device.type != "cpu"
        large = [p for p in parameters if self._small is None or _is_large(p)]
        rest = [p for p in parameters if self._small is not None and not _is_large(p)]
        pairs = ((large, self._rule), (rest, self._small))
        self._buffers.append([_Buffer(members, rule) for members, rule in pairs if members])

    @property
    def num_state_bytes(self) -> int:
        """Bytes of all moments, those that fill up blocks included."""
        buffers = itertools.chain.from_iterable(self._buffers)
        return sum(moment.nbytes for buffer in buffers for moment in buffer.moments.values())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; nothing waits for the device.

        Returns: what the closure returns, if there is one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        is_skipped = None if self.found_inf is None else self.found_inf.bool()
        if is_skipped is not None and not self._is_joined:
            # On a CPU there is no wait for what is known, and no need for copies.
            if is_skipped:
                return loss
            is_skipped = None
        for group, buffers in zip(self.param_groups, self._buffers, strict=True):
            for buffer in buffers:
                for run in buffer.runs(self.state, is_joined=self._is_joined):
                    buffer.move(run, self.state, group, is_skipped)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:  ValueError if it is another optimizer's or network's, or if 8-bit state belongs to
                 weights in another memory format.
        """
        super().load_state_dict(state_dict)
        for buffer in itertools.chain.from_iterable(self._buffers):
            for slot in buffer.slots:
                saved = self.state.pop(slot.parameter, None)
                if saved:
                    self.state[slot.parameter] = buffer.adopt(slot, saved)


class _Buffer:
    """Parameters of one group that follow one rule, side by side, with zeros up to whole blocks."""

    def __init__(self, parameters: list[nn.Parameter], rule: Rule) -> None:
        self._rule = rule
        device = parameters[0].device
        zeros = torch.zeros(BLOCK_SIZE, device=device)
        self.slots, stop = [], 0
        for parameter in parameters:
            start, stop = stop, stop + -(-parameter.numel() // BLOCK_SIZE) * BLOCK_SIZE
            num_padding = stop - start - parameter.numel()
            # empty_like is dense, in the same order, even where the parameter has gaps.
            order = _memory_order(torch.empty_like(parameter))
            padding = zeros[:num_padding] if num_padding else None
            self.slots.append(_Slot(parameter, start, stop, order, padding))
        self._weight = torch.zeros(stop, device=device)
        self.moments = {
            name: torch.zeros(stop // moment.num_weights, dtype=moment.dtype, device=device)
            for name, moment in rule.moments.items()
        }
        for slot in self.slots:
            place = self._view(self._weight, slot)
            slot.parameter.data = place.copy_(slot.parameter.data)

    def runs(
        self, state: Mapping[nn.Parameter, dict[str, Any]], *, is_joined: bool
    ) -> Iterator[list[_Slot]]:
        """What to move at once: neighbours that have gradients and have made equally many steps.

        Not joined, each of them is by itself.
        """

        def steps_made(slot: _Slot) -> int | None:
            if slot.parameter.grad is None:
                return None
            made = state[slot.parameter]
            return made["step"] if made else 0

        for made, members in itertools.groupby(self.slots, steps_made):
            if made is None:
                continue
            if is_joined:
                yield list(members)
            else:
                yield from ([slot] for slot in members)

    def move(
        self,
        run: list[_Slot],
        state: dict[nn.Parameter, dict[str, Any]],
        group: dict[str, Any],
        is_skipped: Tensor | None,
    ) -> None:
        """One step of neighbours, which count as one long weight; the number of steps goes on.

        The copies that a skipped step goes back to live no longer than this call, after the
        backward pass has let go of its memory.
        """
        grads = []
        for slot in run:
            if not state[slot.parameter]:
                state[slot.parameter] = self._fresh(slot)
            state[slot.parameter]["step"] += 1
            # A module moved or cast after this was built would train no more, and say nothing.
            address = self._weight.data_ptr() + slot.start * self._weight.element_size()
            assert slot.parameter.data_ptr() == address, "a parameter left its optimizer's buffer"
            grads.append(slot.parameter.grad.permute(slot.order).reshape(-1))
            if slot.padding is not None and slot is not run[-1]:
                grads.append(slot.padding)
        grad = torch.cat(grads) if len(grads) > 1 else grads[0].contiguous()
        start, step = run[0].start, state[run[0].parameter]["step"]
        stop = start + len(grad)
        moments = {
            name: self.moments[name][start // moment.num_weights : -(-stop // moment.num_weights)]
            for name, moment in self._rule.moments.items()
        }
        weight = self._weight[start:stop]
        moved = [] if is_skipped is None else [weight, *moments.values()]
        before = [tensor.clone() for tensor in moved]
        self._rule.update(weight, grad, moments, step, group)
        for tensor, old in zip(moved, before, strict=True):
            torch.where(is_skipped, old, tensor, out=tensor)

    def adopt(self, slot: _Slot, saved: dict[str, Any]) -> dict[str, Any]:
        """A parameter's state in this buffer, with the saved values."""
        place = self._fresh(slot)
        if saved.keys() != place.keys():
            raise ValueError(
                f"the saved optimizer keeps {sorted(saved)} per parameter and this one "
                f"{sorted(place)}: it was another optim.kind"
            )
        place["step"] = int(saved["step"])
        for name, moment in self._rule.moments.items():
            if saved[name].shape != place[name].shape:
                raise ValueError(
                    f"the saved optimizer's {name} is {list(saved[name].shape)}, and here it is "
                    f"{list(place[name].shape)}: it was another network"
                )
            # A block of 8-bit state is a stretch of memory, so it cannot be laid out anew.
            is_block = moment.dtype == torch.uint8
            if is_block and _memory_order(saved[name]) != _memory_order(place[name]):
                raise ValueError("the saved 8-bit state is of weights in another memory format")
            place[name].copy_(saved[name])
        return place

    def _fresh(self, slot: _Slot) -> dict[str, Any]:
        """The state of a parameter that has made no step: views of the moments, set to zero."""
        state: dict[str, Any] = {"step": 0}
        for name, moment in self._rule.moments.items():
            flat, size = self.moments[name], moment.num_weights
            share = flat[slot.start // size : slot.stop // size].zero_()
            state[name] = self._view(flat, slot) if size == 1 else share
        return state

    @staticmethod
    def _view(flat: Tensor, slot: _Slot) -> Tensor:
        parameter = slot.parameter
        return flat.as_strided(parameter.shape, torch.empty_like(parameter).stride(), slot.start)


def lion_rule() -> Rule:
    """Full-precision Lion: lion-pytorch's arithmetic on whole buffers."""
    from lion_pytorch.lion_pytorch import update_fn

    def update(
        weight: Tensor, grad: Tensor, moments: dict[str, Tensor], step: int, group: dict[str, Any]
    ) -> None:
        update_fn(
            weight, grad, moments["exp_avg"], group["lr"], group["weight_decay"], *group["betas"]
        )

    return Rule({"exp_avg": EVERY_WEIGHT}, update)


def _is_large(parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and parameter.numel() >= _MIN_8BIT_ELEMENTS


def _memory_order(tensor: Tensor) -> list[int]:
    """The dimensions of a dense tensor, slowest first; those of size 1 lie anywhere, so last."""
    by_stride = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return sorted(by_stride, key=lambda dim: tensor.shape[dim] == 1)
