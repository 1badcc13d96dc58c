"""What a network costs: parameters, arithmetic, bytes, and how long an answer takes."""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hard_fast.models.binary import BinaryConv2d, packed_bytes

BATCH_SIZES = (1, 32)
_NUM_ROUNDS = 5
# Per network and size of batch; slow ones are called less often, but never fewer than the least.
_SECONDS = 1.5
_MOST_CALLS, _LEAST_CALLS = 200, 20
_WARM_UP_CALLS = 3
# Operations on single bits that a word of a computer does at once.
_WORD_BITS = 64


def count_costs(net: nn.Module, image_shape: Sequence[int]) -> dict[str, int]:
    """What a network costs by its build.

    Returns: `parameters`, numbers that were learned, of which one that two layers share counts
             once; `flops`, additions and multiplications for one image in convolutions, matrix
             products and attention, those on signs counted as 1/64 each; `bytes` of weights and
             statistics as they lie in memory; `packed_bytes` with one bit for each binary weight.
    Source:  BOPs / 64 + FLOPs, Bi-Real Net, arXiv:1808.00278, section 4.
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.zeros(1, *image_shape))
    by_module = counter.get_flop_counts()
    on_signs = sum(
        sum(by_module[f"{type(net).__name__}.{name}"].values())
        for name, module in net.named_modules()
        if isinstance(module, BinaryConv2d)
    )
    return {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "flops": counter.get_total_flops() - on_signs + on_signs // _WORD_BITS,
        "bytes": sum(tensor.nbytes for tensor in net.state_dict().values()),
        "packed_bytes": packed_bytes(net),
    }


@torch.no_grad()
def time_calls(
    networks: Mapping[str, nn.Module],
    image_shape: Sequence[int],
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> dict[str, dict[str, dict[str, float]]]:
    """By network and size of batch: p50 and p95 of a call, in ms, and the number of calls, n.

    The networks take turns, so that a busy moment of the machine meets all of them.
    """
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in networks}
    for size in batch_sizes:
        images = torch.rand(size, *image_shape, generator=torch.Generator().manual_seed(0))
        shares: dict[str, int] = {}
        times: dict[str, list[float]] = {name: [] for name in networks}
        for name, network in networks.items():
            warm = min(_time_ms(network, images) for _ in range(_WARM_UP_CALLS))
            num = int(min(max(1e3 * _SECONDS / warm, _LEAST_CALLS), _MOST_CALLS))
            shares[name] = max(1, num // _NUM_ROUNDS)
        for _ in range(_NUM_ROUNDS):
            for name, network in networks.items():
                times[name] += [_time_ms(network, images) for _ in range(shares[name])]
        for name, measured in times.items():
            p50, p95 = torch.tensor(measured).quantile(torch.tensor([0.5, 0.95])).tolist()
            found[name][str(size)] = {"p50_ms": p50, "p95_ms": p95, "n": len(measured)}
    return found


def _time_ms(network: nn.Module, images: torch.Tensor) -> float:
    start = time.perf_counter()
    network(images)
    return 1e3 * (time.perf_counter() - start)
