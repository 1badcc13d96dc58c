"""The options of a network as a configuration gives them, checked against its constructor."""

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from hard_fast.models.taps import nearest

# Annotations of the builders' options are what a config's values are checked against.
Count = Annotated[int, Field(ge=1)]
Widths = Annotated[tuple[Count, ...], Field(min_length=1)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


def typed_options(
    name: str, builder: Callable, options: Mapping[str, Any], given: Collection[str] = ()
) -> dict[str, Any]:
    """Keyword arguments for a builder, as its annotations want them: a list becomes a tuple.

    Args:    name: of the network, for the message.
             given: arguments that come from elsewhere.
    Raises:  ValueError that names the option which is unknown or has an unfit value.
    """
    annotations = {
        key: parameter.annotation
        for key, parameter in inspect.signature(builder).parameters.items()
        if key not in given
    }
    typed = {}
    for key, value in options.items():
        if key not in annotations:
            choices = f" (options: {', '.join(annotations)})" if annotations else ""
            raise ValueError(
                f"options.{key}: {name!r} has no such option{nearest(key, annotations)}{choices}"
            )
        try:
            # JSON mode is strict about scalars, yet takes a list for a tuple as TOML writes it.
            typed[key] = TypeAdapter(annotations[key]).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ValueError(
                f"options.{key} = {value!r}: {reason[:1].lower()}{reason[1:]}"
            ) from None
    return typed
