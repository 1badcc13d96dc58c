"""A network's classifier and that of a file of weights, which may know other classes."""

from torch import nn

from hard_fast.models.weights import OtherClasses, load_weights


def load_checkpoint(
    net: nn.Module,
    name: str,
    path: str,
    *,
    new_head: bool,
    may_learn: bool,
    may_keep_classes: bool,
) -> None:
    """Load a file into a network of this name, all of it or all but the classifier.

    Args:    new_head: leave the classifier as it is.
             may_learn: whether the network is there to learn classes of its own.
             may_keep_classes: whether it may answer with other classes than the data's.
    Raises:  ValueError, one line, if the file does not fit; with what to do where only its
             classes are others.
    """
    classifier = getattr(net, "pretrained_cfg", {}).get("classifier")
    # A network with several heads lists them.
    can_leave_it = isinstance(classifier, str)
    if new_head and not can_leave_it:
        raise ValueError(f"new_head = true: {name!r} does not name its classifier as timm's do")
    try:
        load_weights(net, path, head=classifier if new_head else None)
    except OtherClasses as error:
        if not can_leave_it or not all(key.startswith(f"{classifier}.") for key in error.keys):
            raise
        advice = f"; the file has {error.num} classes"
        if may_learn:
            advice += ": set new_head = true to learn others"
        elif may_keep_classes:
            advice += (
                ": it must learn the data's first (--config own_teacher), or, where objective.kind "
                f"= 'prototypes', keep its own with num_classes = {error.num}"
            )
        raise ValueError(f"{error}{advice}") from error
