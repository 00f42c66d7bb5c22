"""Policy "fastest": the candidates for a call are timed once, PyTorch's own among them, and the fastest runs.

A verdict holds for one function, shapes, dtypes, layouts, arguments, device, torch and fastcnn. It is a file of its own
in the cache directory, written under another name and renamed: processes that measure at once replace each other's
whole files.
"""

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes

from .. import _library, _timing
from .._config import ACCURACIES, STOCK, config, road
from . import _triton
from ._face import allows_tf32, autocast_cast, batched, native, pair, recording, tracing, with_tf32

P = ParamSpec("P")
R = TypeVar("R")

timer: Callable = _timing.medians  # what measures, and what a test replaces
DEFAULT = "fastcnn"
DIRECT = "fastcnn's direct kernel"
_ARGUMENTS = {DIRECT: {"accuracy": ACCURACIES[0]}}  # in which candidates differ
_HASHABLE = frozenset((bool, int, float, str))
_CUDNN = frozenset(("conv2d", "conv2d_bn_relu", "conv_transpose2d", "sparse_conv2d"))  # convolves PyTorch's own


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
    given = (t for t in (*args, *kwargs.values()) if hasattr(t, "__torch_function__"))
    if not all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in given):
        notes = ("policy 'fastest' does not time tensors without data, nor subclasses",)
        return _run(face, DEFAULT, args, kwargs, notes)
    key = _key(face.__name__, x.device, args, kwargs)
    verdict = _verdicts.get(key)
    if verdict is None:
        found = _decide(face, x, key, args, kwargs)
        if isinstance(found, str):
            warnings.warn(f"{face.__name__}: policy 'fastest' {found}", RuntimeWarning, stacklevel=3)
            return _run(face, DEFAULT, args, kwargs, (f"policy 'fastest' {found}",))
        verdict = found
    return _run(face, verdict.winner, args, kwargs, verdict.notes)


def _decide(face: Callable, x: torch.Tensor, key: tuple, args: tuple, kwargs: dict) -> Verdict | str:
    """What another thread or process has found, else what is measured; or why nothing can be."""
    with _measuring:
        verdict = _verdicts.get(key) or _load(key)
        if verdict is None:
            if _capturing(x):
                return "does not time while a CUDA graph is captured: the default runs. Call it once before"
            try:
                verdict = _measure(face, x.device, args, kwargs)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                return "lacks the memory to time it: the default runs"
            if verdict.seconds:
                _store(key, verdict)
        _verdicts[key] = verdict
    return verdict


def _capturing(x: torch.Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _out_of_memory(error: Exception) -> bool:
    """PyTorch's CPU allocator and NVIDIA's libraries say it in words only."""
    words = ("DefaultCPUAllocator", "bad_alloc", "STATUS_ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


def _tensors(args: tuple, kwargs: dict) -> list[torch.Tensor]:
    return [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]


def rivals(face: Callable, args: tuple, kwargs: dict) -> list[str]:
    """What can compute a call, known to be a right one, beside the default."""
    bound = inspect.signature(face).bind(*args, **kwargs)
    bound.apply_defaults()
    op, given = face.__name__, bound.arguments
    if op == "batch_norm_relu" and (given["training"] or _wants_gradients(args, kwargs)):
        return []  # the default is PyTorch's own
    strict = (given.get("accuracy") or config.accuracy) == ACCURACIES[0]
    direct = [DIRECT] if op == "conv2d" and not strict and _winograd(given) else []
    direct += _triton_rivals(op, given)
    x = given["input"]
    rounds = x.is_cuda and x.dtype is torch.float32 and op in _CUDNN and allows_tf32()
    return direct if strict and rounds else [*direct, STOCK]


def _wants_gradients(args: tuple, kwargs: dict) -> bool:
    return recording() and any(t.requires_grad for t in _tensors(args, kwargs))


def _geometry(given: dict[str, Any]) -> list[tuple[int, int]]:
    """Stride, padding and dilation of a convolution's arguments; 'same' as on the side that gets less of it."""
    stride, dilation = (pair("conv2d", name, given[name]) for name in ("stride", "dilation"))
    padding = given["padding"]
    if isinstance(padding, str):
        same = tuple(d * (k - 1) // 2 for d, k in zip(dilation, given["weight"].shape[2:]))
        padding = {"valid": 0, "same": same}.get(padding, padding)
    return [stride, pair("conv2d", "padding", padding), dilation]


def _winograd(given: dict[str, Any]) -> bool:
    """Whether Winograd's kernel would run for conv2d's arguments."""
    x, size = given["input"], given["weight"].shape
    if not x.is_cpu or size[2:] != (3, 3):
        return False
    geometry = [n for v in _geometry(given) for n in v]
    shape = x.shape if x.dim() == 4 else (1, *x.shape)
    return _library._C.conv2d_is_winograd(shape, size, (*geometry, given["groups"]), 1)


def _triton_rivals(op: str, given: dict[str, Any]) -> list[str]:
    """Candidates beside Triton's default, if that would run for the arguments of conv2d or conv2d_bn_relu."""
    x, weight = given["input"], given["weight"] if op in ("conv2d", "conv2d_bn_relu") else None
    if weight is None or x.is_cpu:
        return []
    x, weight, bias = autocast_cast(batched(op, x), weight, given["bias"])
    level = with_tf32(ACCURACIES.index(given.get("accuracy") or config.accuracy), x)
    stride, padding, dilation = _geometry(given)
    takes = _triton.trains if given.get("training") else _triton.takes
    if not takes(x, weight, bias, stride, padding, dilation, given["groups"], level):
        return []
    return _triton.rivals(x, weight, stride, padding, dilation, given["groups"], level)


def _run(face: Callable, name: str, args: tuple, kwargs: dict, notes: tuple[str, ...] = ()) -> Any:
    road.candidate, road.notes = name, notes
    try:
        return face(*args, **{**kwargs, **_ARGUMENTS.get(name, {})})
    finally:
        road.candidate, road.notes = "", ()


def _measure(face: Callable, device: torch.device, args: tuple, kwargs: dict) -> Verdict:
    """On copies: training updates running statistics."""
    with _unwatched():
        args, kwargs = _copies(args, kwargs)
        calls = {DEFAULT: _call(face, DEFAULT, args, kwargs)}
        calls[DEFAULT]()  # what it raises, the call would
        failed: dict[str, str] = {}
        others = rivals(face, args, kwargs)
        if not others:
            return Verdict(DEFAULT, {})
        for name in others:
            call = _call(face, name, args, kwargs)
            try:
                call()
            except Exception as error:  # Triton's errors have no narrower base
                if _out_of_memory(error):
                    raise
                failed[name] = str(error).partition("\n")[0]
            else:
                calls[name] = call
        seconds = dict(zip(calls, timer(list(calls.values()), device), strict=True))
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Verdict(min(seconds, key=seconds.__getitem__), seconds, failed, now)


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    """Neither modes nor the caller's saved-tensor hooks see what runs: a checkpoint's would run the caller anew."""
    enabled = torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    hooks = saved_tensors_hooks(lambda t: t, lambda t: t) if enabled else contextlib.nullcontext()
    with _disable_current_modes(), torch._C.DisableTorchFunction(), hooks:
        yield


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
    if not _wants_gradients(args, kwargs):
        return lambda: _run(face, name, args, kwargs)
    leaves = [t for t in _tensors(args, kwargs) if t.requires_grad]

    def both():
        y = _run(face, name, args, kwargs)
        y = y[0] if isinstance(y, tuple) else y
        return torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True) if y.requires_grad else y

    return both


def _key(op: str, device: torch.device, args: tuple, kwargs: dict) -> tuple:
    """Compared at every call: objects. What cannot change within a process is in the file's key alone."""
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    named = tuple((name, _plain(kwargs[name])) for name in sorted(kwargs))
    how = recording(), config.accuracy, autocast, torch.are_deterministic_algorithms_enabled()
    return op, *map(_plain, args), named, how, _machine(device)


def _plain(a: Any) -> Any:
    if a is None or type(a) in _HASHABLE:  # first: isinstance takes longer, and this is on every call
        return a
    if isinstance(a, torch.Tensor):
        return a.dtype, a.shape, a.stride(), a.requires_grad, type(a) is torch.nn.Parameter
    if isinstance(a, (tuple, list)):
        return tuple(map(_plain, a))
    return a if isinstance(a, tuple(_HASHABLE)) else repr(a)


def _machine(device: torch.device) -> tuple:
    backends: Any = torch.backends  # whose stubs leave attributes out
    if device.type != "cuda":
        return torch.get_num_threads(), backends.mkldnn.enabled
    cudnn = backends.cudnn
    precisions = cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision
    how = cudnn.enabled, cudnn.benchmark, cudnn.deterministic, config.triton
    return _gpu_name(device), *how, precisions


@functools.cache
def _gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


@functools.cache
def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@functools.cache
def _versions() -> tuple:
    """Of the CPU and of everything that computes; a library built anew is another."""
    import fastcnn

    found = [importlib.util.find_spec(f"fastcnn.{name}") for name in ("_C", "_C_cuda")]
    built = [Path(spec.origin).stat().st_mtime_ns for spec in found if spec and spec.origin]
    triton = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else ""
    return cpu_name(), _library.cpu_capability(), torch.__version__, fastcnn.__version__, triton, *built


def _folder() -> Path:
    return config.cache_dir / "verdicts"


def _text(key: tuple) -> str:
    return repr((*key, _versions()))


def _path(key: tuple) -> Path:
    return _folder() / f"{hashlib.sha256(_text(key).encode()).hexdigest()[:32]}.json"


def _load(key: tuple) -> Verdict | None:
    path = _path(key)
    try:
        data = json.loads(path.read_bytes())
        if data.pop("key") != _text(key):
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
        unfinished.write_text(json.dumps({"key": _text(key), **asdict(verdict)}, indent=1))
        os.replace(unfinished, path)
    except OSError as error:
        warnings.warn(f"fastcnn keeps a verdict for this process only: {error}", RuntimeWarning, stacklevel=5)


def clear() -> None:
    """Drops all verdicts, the cache directory's, too."""
    _verdicts.clear()
    for path in _folder().glob("*"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"fastcnn leaves a verdict in its cache: {error}", RuntimeWarning, stacklevel=3)
