import re
from typing import Annotated, Literal

import pytest
from pydantic import Field

from hard_fast.models.options import typed_options


def builder(
    size: int,
    width: Annotated[int, Field(ge=1)] = 4,
    sides: tuple[int, int] = (1, 2),
    kind: Literal["a", "b"] = "a",
): ...


def test_lists_become_what_the_builder_wants():
    assert typed_options("net", builder, {"sides": [3, 4], "width": 2}) == {
        "sides": (3, 4),
        "width": 2,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 3}, "options.widht: 'net' has no such option; did you mean 'width'?"),
        ({"size": 3}, "options.size: 'net' has no such option"),
        ({"width": 0}, "options.width = 0: input should be greater than or equal to 1"),
        ({"width": 2.5}, "options.width = 2.5: input should be a valid integer"),
        ({"kind": "c"}, "options.kind = 'c': input should be 'a' or 'b'"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        typed_options("net", builder, options, given=("size",))
