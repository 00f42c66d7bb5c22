"""The list of models, and what every one of them does alike: look-up by name and loading of weights."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor, nn

from .checkpoint import fit, read_checkpoint

Weights = str | os.PathLike[str] | Mapping[str, Tensor] | None

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

_builders: dict[str, Callable[..., nn.Module]] = {}


def register_model(builder: Builder) -> Builder:
    """Makes a builder function known to list_models and get_model under its own name."""
    _builders[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """The names that get_model takes, in alphabetical order."""
    return sorted(_builders)


def get_model(name: str, **kwargs) -> nn.Module:
    """Builds a model by name.

    Keyword arguments go to the builder; all builders take `weights` (None, a state dict, or the path of a checkpoint)
    and `num_classes`. Raises ValueError for an unknown name.
    """
    if name not in _builders:
        raise ValueError(f"get_model: unknown model {name!r}, expected one of {', '.join(list_models())}")
    return _builders[name](**kwargs)


def default_classes(name: str) -> int:
    """The num_classes that a builder has if none is given."""
    return inspect.signature(_builders[name]).parameters["num_classes"].default


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Copies a state dict, or that of a checkpoint's file, into the model.

    Keys and shapes must match as read_checkpoint and fit read them, and all of them; else MismatchError says what does
    not, and the model stays as it was.
    """
    if weights is not None:
        model.load_state_dict(fit(model, read_checkpoint(weights).state, type(model).__name__).state)
