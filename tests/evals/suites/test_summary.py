import pytest

from hard_fast.evals.published import ALEXNET_ERRORS
from hard_fast.evals.suites import summarise


def every_part(top1):
    return {
        f"{name}/{severity}": {"top1": top1(name, severity), "nll": float(severity)}
        for name in ALEXNET_ERRORS
        for severity in range(1, 6)
    }


def test_a_suite_of_one_part_has_its_scores():
    assert summarise("mnist", {"test": {"top1": 98.0, "nll": 0.1}}) == {"top1": 98.0, "nll": 0.1}


def test_alexnet_itself_has_an_mce_of_100():
    found = summarise("imagenet_c", every_part(lambda c, s: 100.0 - ALEXNET_ERRORS[c][s - 1]))
    assert found["mce"] == pytest.approx(100.0)
    assert found["gaussian_noise_error"] == pytest.approx(88.6428)
    # The mean of AlexNet's own errors.
    assert found["corruption_error"] == pytest.approx(1183.4896 / 15)
    assert found["top1"] == pytest.approx(100.0 - found["corruption_error"])
    assert found["nll"] == pytest.approx(3.0)


def test_mce_weighs_each_corruption_by_alexnet():
    # All wrong under fog alone, half as wrong as AlexNet elsewhere.
    def top1(corruption, severity):
        error = 100.0 if corruption == "fog" else 0.5 * ALEXNET_ERRORS[corruption][severity - 1]
        return 100.0 - error

    found = summarise("imagenet+corrupted", every_part(top1))
    assert found["mce"] == pytest.approx((14 * 50.0 + 100.0 / 0.819324) / 15)


@pytest.mark.parametrize("name", ["cifar10_c", "cifar10+corrupted", "folder:a+corrupted"])
def test_only_imagenet_is_measured_against_alexnet(name):
    found = summarise(name, every_part(lambda c, s: 60.0 - s))
    assert "mce" not in found and found["corruption_error"] == pytest.approx(43.0)


def test_some_corruptions_and_severities_have_no_mce():
    parts = {
        "fog/1": {"top1": 90.0, "ece": 1.0},
        "fog/5": {"top1": 70.0, "ece": 3.0},
        "snow/1": {"top1": 50.0, "ece": 5.0},
    }
    found = summarise("imagenet_c:fog,snow", parts)
    wanted = {"top1": 65.0, "ece": 3.5, "corruption_error": 35.0}
    assert found == wanted | {"fog_error": 20.0, "snow_error": 50.0}


def test_scores_that_only_some_parts_have_are_left_out():
    parts = {"fog/1": {"real": 80.0, "nll": 1.0}, "fog/2": {"real": 60.0}}
    assert summarise("imagenet_real+corrupted:fog", parts) == {"real": 70.0}


def test_mnist_c_has_no_severities():
    found = summarise("mnist_c:fog,identity", {"fog": {"top1": 40.0}, "identity": {"top1": 98.0}})
    assert found["fog_error"] == 60.0 and found["corruption_error"] == pytest.approx(31.0)
