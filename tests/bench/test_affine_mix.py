import math

import pytest
import torch

from bench import affine_mix as compared
from bench.affine_mix import Case

CPU = torch.device("cpu")
SHAPE = (8, 3, 8, 12)


def case_of(kind, in_dtype=torch.float32):
    return Case(kind, SHAPE, 4, in_dtype, torch.float32)


def test_bytes_counted_by_hand():
    made, given = 2 * 3 * 8 * 12 * 4, 8 * 3 * 8 * 12
    problem = compared.draw_problem(case_of("mix", torch.uint8), CPU)
    assert problem.num_bytes("forward") == given + made
    # theta is 2 x 4 x 6 floats, weight 2 x 4 x 6 patches.
    gradients = 4 * (48 + 48)
    assert problem.num_bytes("forward_backward") == 2 * (given + made) + gradients
    problem = compared.draw_problem(case_of("mix"), CPU)
    gradients += 4 * given
    assert problem.num_bytes("forward_backward_image") == 2 * (4 * given + made) + gradients


def test_a_case_has_the_tensors_of_its_kind():
    warp, mix, mixup = (compared.draw_problem(case_of(kind), CPU) for kind in compared.KINDS)
    assert warp.theta.shape == (8, 1, 2, 3) and warp.weight is None and warp.index is None
    assert mix.theta.shape == (2, 4, 2, 3) and mix.weight.shape == (2, 4, 2, 3)
    assert sorted(mix.index.flatten().tolist()) == list(range(8))
    assert mixup.theta is None and mixup.index.tolist()[:2] == [[0, 1], [1, 0]]
    for problem in (mix, mixup):
        torch.testing.assert_close(problem.weight.sum(1), torch.ones_like(problem.weight[:, 0]))
    assert case_of("mix").metrics == list(compared.GRADIENTS)
    assert case_of("mix", torch.uint8).metrics == ["forward", "forward_backward"]


def test_warps_are_near_the_identity_and_repeat():
    case = Case("warp", (512, 1, 2, 2), 1, torch.float32, torch.float32)
    theta = compared.draw_problem(case, CPU).theta[:, 0]
    assert torch.equal(theta, compared.draw_problem(case, CPU).theta[:, 0])
    scale = torch.linalg.det(theta[:, :, :2]).sqrt()
    angle = torch.atan2(theta[:, 1, 0], theta[:, 0, 0]) * 180 / math.pi
    for found, low, high in ((scale, 0.8, 1.2), (angle, -29, 29), (theta[:, :, 2], -0.1, 0.1)):
        assert low <= found.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < found.max() <= high


def test_samples_can_be_kept_off_the_lines_between_pixels():
    theta = compared.draw_problem(case_of("warp"), CPU, off_grid=True).theta[:, 0]
    assert compared._is_off_grid(theta, [8, 12]).all()
    # The identity samples pixel centres, and half a pixel to the right lies between two.
    identity, half = torch.eye(2, 3), torch.eye(2, 3)
    half[:, 2] = torch.tensor([1 / 12, 1 / 8])
    assert compared._is_off_grid(torch.stack([identity, half]), [8, 12]).tolist() == [False, True]


def test_a_matrix_in_pixels_worked_out_by_hand():
    # Twice the size about the centre, and two pixels to the right of eight.
    theta = torch.tensor([[0.5, 0.0, 0.0], [0.0, 1.0, 0.0]])[None, None]
    size = torch.Size([4, 8])
    got = compared._inverse_in_pixels(theta, size, [-3.5, -1.5])[0, 0]
    # The first pixel's centre is 3.5 left of the centre, and goes to 7 left of it.
    assert got.tolist() == [[2.0, 0.0, -3.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    theta = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])[None, None]
    got = compared._inverse_in_pixels(theta, size, [0.0, 0.0])[0, 0]
    assert got.tolist() == [[1.0, 0.0, -2.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("name", ["kornia", "torchtransform"])
def test_a_peer_is_there_or_said_to_be_left_out(name, capsys):
    found = compared.peers(CPU, full=False)
    said = capsys.readouterr().err
    assert (name in found) != (f"{name}: left out, not installed" in said)
    assert "eager" in found and "compiled" not in found and "compiled: left out" in said
