from xml.etree import ElementTree

from bench.plot import Advantage, draw_advantages, numbers_in


def test_a_picture_is_svg_that_names_its_numbers():
    advantages = [Advantage("one step, ms", [1.2]), Advantage("affine_mix", [2.0, 5.0, 9.0])]
    page = draw_advantages("CPU, 2 threads", advantages)
    assert ElementTree.fromstring(page).tag.endswith("svg")
    again = draw_advantages("CPU, 2 threads", advantages)
    other = draw_advantages("CPU, 2 threads", [Advantage("one step, ms", [1.3]), advantages[1]])
    assert numbers_in(page) == numbers_in(again) != numbers_in(other)
    assert numbers_in(page) is not None and numbers_in("<svg/>") is None
