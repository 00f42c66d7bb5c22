"""Policy "fastest": the candidates for a call are timed once, PyTorch's own among them, and the fastest runs.

A verdict holds for one function, shapes, dtypes, layouts, arguments, device, torch and fastcnn. It is a file of its own
in the cache directory, written under another name and renamed: processes that measure at once replace each other's
whole files.
"""

import datetime
import functools
import hashlib
import json
import os
import platform
import threading
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

from .. import _library, _timing
from .._config import ACCURACIES, STOCK, config, road
from ._face import native, tracing

P = ParamSpec("P")
R = TypeVar("R")

timer: Callable = _timing.medians  # what measures, and what a test replaces
DIRECT = "fastcnn's direct kernel"
_ARGUMENTS = {DIRECT: {"accuracy": ACCURACIES[0]}}  # in which candidates differ


@dataclass(frozen=True)
class Verdict:
    """What was measured for one key. seconds: of a call, with its backward pass where gradients are wanted."""

    winner: str
    seconds: dict[str, float]
    failed: dict[str, str] = field(default_factory=dict)  # candidates that cannot run it, and what they said
    measured: str = ""

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        times = [f"{name}: {1e3 * s:.4g} ms, measured {self.measured}" for name, s in self.seconds.items()]
        return "policy 'fastest'", *times, *(f"{name}: cannot run it: {said}" for name, said in self.failed.items())


_verdicts: dict[tuple, Verdict] = {}
_measuring = threading.Lock()


def by_policy(face: Callable[P, R]) -> Callable[P, R]:
    """A function of fastcnn.functional under the policy that is set."""

    @functools.wraps(face)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if config.policy != "fastest" or tracing() or road.candidate:
            return face(*args, **kwargs)
        return _fastest(face, args, kwargs)

    return call


def _fastest(face: Callable, args: tuple, kwargs: dict) -> Any:
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, torch.Tensor) or not native(x, face.__name__):
        return face(*args, **kwargs)
    if not all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in _tensors(args, kwargs)):
        notes = ("policy 'fastest' does not time tensors without data, nor subclasses",)
        return _run(face, "fastcnn", args, kwargs, notes)
    key = _key(face.__name__, x.device, args, kwargs)
    verdict = _verdicts.get(key)
    if verdict is None:
        verdict = _load(key)
        if verdict is None:
            if _capturing(x):
                said = "policy 'fastest' does not time while a CUDA graph is captured: the default runs"
                warnings.warn(f"{face.__name__}: {said}. Call it once before", RuntimeWarning, stacklevel=3)
                return _run(face, "fastcnn", args, kwargs, (said,))
            with _measuring:
                verdict = _verdicts.get(key) or _measure(face, x.device, args, kwargs)
                _store(key, verdict)
        _verdicts[key] = verdict
    return _run(face, verdict.winner, args, kwargs, verdict.notes)


def _capturing(x: torch.Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _tensors(args: tuple, kwargs: dict) -> list[torch.Tensor]:
    return [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]


def candidates(op: str, args: tuple, kwargs: dict) -> list[str]:
    """What can compute a call, the default first."""
    direct = False
    if op == "conv2d":
        x, weight = args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs.get("weight")
        level = kwargs.get("accuracy") or config.accuracy
        direct = (
            x.is_cpu and level != ACCURACIES[0] and weight is not None and weight.shape[2:] == (3, 3)
        )  # or Winograd's
    return ["fastcnn", *([DIRECT] if direct else []), STOCK]


def _run(face: Callable, name: str, args: tuple, kwargs: dict, notes: tuple[str, ...] = ()) -> Any:
    road.candidate, road.notes = name, notes
    try:
        return face(*args, **{**kwargs, **_ARGUMENTS.get(name, {})})
    finally:
        road.candidate, road.notes = "", ()


def _measure(face: Callable, device: torch.device, args: tuple, kwargs: dict) -> Verdict:
    """On copies: training updates running statistics. Nothing that watches PyTorch's calls sees these."""
    with _disable_current_modes():
        calls: dict[str, Callable[[], object]] = {}
        failed: dict[str, str] = {}
        for name in candidates(face.__name__, args, kwargs):
            call = _call(face, name, *_copies(args, kwargs))
            try:
                call()
            except (RuntimeError, ValueError, TypeError) as error:
                if not calls:  # the default: the call itself is wrong
                    raise
                failed[name] = str(error).partition("\n")[0]
            else:
                calls[name] = call
        seconds = dict(zip(calls, timer(list(calls.values()), device), strict=True))
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Verdict(min(seconds, key=seconds.__getitem__), seconds, failed, now)


def _copies(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    def copy(t):
        if not isinstance(t, torch.Tensor):
            return t
        own = t.detach().clone()
        if type(t) is torch.nn.Parameter:  # packed weights are kept for these alone
            return torch.nn.Parameter(own, requires_grad=t.requires_grad)
        return own.requires_grad_(t.requires_grad)

    return tuple(map(copy, args)), {name: copy(t) for name, t in kwargs.items()}


def _call(face: Callable, name: str, args: tuple, kwargs: dict) -> Callable[[], object]:
    leaves = [t for t in _tensors(args, kwargs) if t.requires_grad] if torch.is_grad_enabled() else []
    if not leaves:
        return lambda: _run(face, name, args, kwargs)

    def both():
        y = _run(face, name, args, kwargs)
        y = y[0] if isinstance(y, tuple) else y
        return torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True) if y.requires_grad else y

    return both


def _key(op: str, device: torch.device, args: tuple, kwargs: dict) -> tuple:
    def plain(a):
        if isinstance(a, torch.Tensor):
            return str(a.dtype), tuple(a.shape), a.stride(), a.requires_grad, type(a) is torch.nn.Parameter
        return repr(a)

    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    named = tuple((name, plain(kwargs[name])) for name in sorted(kwargs))
    how = torch.is_grad_enabled(), config.accuracy, autocast, torch.are_deterministic_algorithms_enabled()
    return op, *map(plain, args), named, how, _machine(device), _versions()


def _machine(device: torch.device) -> tuple:
    if device.type != "cuda":
        return _cpu_name(), _library.cpu_capability(), torch.get_num_threads()
    cudnn: Any = torch.backends.cudnn  # conv is an attribute that its stub leaves out
    precision = cudnn.conv.fp32_precision
    return torch.cuda.get_device_name(device), cudnn.enabled, cudnn.benchmark, cudnn.deterministic, precision


@functools.cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@functools.cache
def _versions() -> tuple[str, str]:
    import fastcnn

    return torch.__version__, fastcnn.__version__


def _folder() -> Path:
    return config.cache_dir / "verdicts"


def _path(key: tuple) -> Path:
    return _folder() / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.json"


def _load(key: tuple) -> Verdict | None:
    path = _path(key)
    try:
        data = json.loads(path.read_bytes())
        if data.pop("key") != repr(key):
            raise ValueError("it is of another call")
        verdict = Verdict(**data)
        if not isinstance(verdict.seconds[verdict.winner], float):
            raise TypeError("the winner has no time")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"fastcnn measures anew: the verdict in {path} is unreadable: {error!r}", RuntimeWarning, stacklevel=5
        )
        return None
    return verdict


def _store(key: tuple, verdict: Verdict) -> None:
    path = _path(key)
    unfinished = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps({"key": repr(key), **asdict(verdict)}, indent=1))
        os.replace(unfinished, path)
    except OSError as error:
        warnings.warn(f"fastcnn keeps a verdict for this process only: {error}", RuntimeWarning, stacklevel=5)


def clear() -> None:
    """Drops all verdicts, the cache directory's, too."""
    _verdicts.clear()
    for path in _folder().glob("*"):
        path.unlink(missing_ok=True)
