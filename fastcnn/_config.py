"""Settings, read once from the environment at import: FASTCNN_DISABLE, _VERBOSE, _ACCURACY, _POLICY, _TRITON and
_CACHE_DIR."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("fastcnn")
logger.addHandler(logging.NullHandler())

ACCURACIES = ("strict", "default", "fast")
POLICIES = ("heuristic", "fastest")


def _flag(name: str, default: str = "") -> bool:
    return os.environ.get(name, default) not in ("", "0")


def _cache_dir() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # Path.home() may raise
    return Path(os.environ.get("FASTCNN_CACHE_DIR") or Path(caches, "fastcnn"))


def _choice(name: str, allowed: tuple[str, ...], default: str) -> str:
    value = os.environ.get(name, default)
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, but got {value!r}")
    return value


@dataclass
class Config:
    """The process-wide settings."""

    disabled: bool  # every function runs its stock PyTorch composition
    verbose: bool  # one line per dispatched kernel on the logger "fastcnn"
    accuracy: str
    policy: str
    triton: bool  # 1x1 and grouped convolutions of CUDA tensors take Triton's kernels
    cache_dir: Path  # of what later processes can use: timing verdicts

    @property
    def level(self) -> int:
        """The accuracy as the ops take it."""
        return ACCURACIES.index(self.accuracy)


config = Config(
    disabled=_flag("FASTCNN_DISABLE"),
    verbose=_flag("FASTCNN_VERBOSE"),
    accuracy=_choice("FASTCNN_ACCURACY", ACCURACIES, "default"),
    policy=_choice("FASTCNN_POLICY", POLICIES, "heuristic"),
    triton=_flag("FASTCNN_TRITON", "1"),
    cache_dir=_cache_dir(),
)
if config.verbose:
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)


class Road(threading.local):
    """What policy "fastest" has decided for the call that is under way in this thread."""

    candidate = ""  # outside of such a call
    notes: tuple[str, ...] = ()  # for explain: how it was decided, and a line for each candidate


STOCK = "ATen"  # the candidate that is PyTorch's own composition
road = Road()


class _Setting(contextlib.AbstractContextManager):
    """A setting that holds from now on or, used as a context manager, until the block ends."""

    def __init__(self, name: str, value: str, allowed: tuple[str, ...]):
        if value not in allowed:
            raise ValueError(f"set_{name}: expected one of {', '.join(allowed)}, but got {value!r}")
        self._name, self._before = name, getattr(config, name)
        setattr(config, name, value)

    def __exit__(self, *exc_info):
        setattr(config, self._name, self._before)


def set_accuracy(accuracy: str) -> _Setting:
    """Sets the accuracy of convolutions: 'strict' (direct kernels only), 'default' or 'fast'."""
    return _Setting("accuracy", accuracy, ACCURACIES)


def set_policy(policy: str) -> _Setting:
    """Sets how kernels are chosen: 'heuristic' (from the shape) or 'fastest' (fastcnn's and PyTorch's are timed once a
    shape, and the verdict is kept in the cache directory)."""
    return _Setting("policy", policy, POLICIES)


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Within the block, every fastcnn function runs its stock PyTorch composition."""
    before, config.disabled = config.disabled, True
    try:
        yield
    finally:
        config.disabled = before
