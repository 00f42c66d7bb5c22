"""Checkpoints of torchvision, timm and training scripts: reading them without running code, and fitting them to a model
of fastcnn's, whole or not at all."""

import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fastcnn._extras import need

StatePath = str | os.PathLike[str]
State = dict[str, Tensor]

# Entries under which training scripts keep a state dict, beside optimizers and epochs.
ENTRIES = (
    "state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights", "state_dict_ema",
    "model_ema",
)  # fmt: skip
# What DataParallel, torch.compile and Lightning put before every key.
PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class Rule:
    """Keys that another library, or an older version of it, writes in another way."""

    name: str
    pattern: str
    replacement: str


RULES = (
    Rule("densenet of torchvision before 0.3", r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),
    Rule("timm's vgg: first linear layer", r"^pre_logits\.fc1\.", "classifier.0."),
    Rule("timm's vgg: second linear layer", r"^pre_logits\.fc2\.", "classifier.3."),
    Rule("timm's vgg: classifier", r"^head\.fc\.", "classifier.6."),
)


class CheckpointError(RuntimeError):
    """A file that is no checkpoint, is damaged, or holds what must not be loaded."""


@dataclass(frozen=True)
class Mismatches:
    """Everything that keeps a state dict from a model."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)  # the file's, the model's
    dtypes: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.shapes) + len(self.dtypes)

    def __str__(self) -> str:
        parts = {
            "Missing keys": self.missing,
            "Unexpected keys": self.unexpected,
            "Wrong shapes": [f"{key}: {got}, expected {want}" for key, (got, want) in self.shapes.items()],
            "Wrong types": [f"{key}: {got}, expected {want}" for key, (got, want) in self.dtypes.items()],
        }
        return "\n".join(f"{name} ({len(lines)}):\n  " + "\n  ".join(lines) for name, lines in parts.items() if lines)


class MismatchError(CheckpointError):
    """A state dict that does not fit a model; `mismatches` has all the reasons."""

    def __init__(self, model: str, mismatches: Mismatches):
        super().__init__(f"the checkpoint does not fit {model}.\n{mismatches}")
        self.model, self.mismatches = model, mismatches


@dataclass(frozen=True)
class Checkpoint:
    """The state dict of a file, and what was around it."""

    state: State
    format: str  # 'safetensors', 'torch', or 'state dict' where none was read
    entry: str  # dotted; '' where the state dict is the whole file
    prefix: str  # taken off every key


@dataclass(frozen=True)
class Fit:
    """A state dict as a model loads it, and what had to be done to it."""

    state: State
    renamed: dict[str, dict[str, str]]  # by rule: the file's key, the model's
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    cast: dict[str, list[str]]  # 'float16 to float32': the keys
    filled: list[str]  # counters that checkpoints of before PyTorch 0.4.1 do not have


def _load(path: Path) -> tuple[object, str]:
    """What the file holds, and its format, which its content tells and not its name."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # after the header's length, in 8 bytes, its JSON
        load_file = need("safetensors.torch", f"reading {path}", "checkpoint").load_file
        error_class = need("safetensors", f"reading {path}", "checkpoint").SafetensorError
        try:
            return load_file(path), "safetensors"
        except error_class as error:
            raise CheckpointError(f"{path}: damaged safetensors file: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True), "torch"
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        if name:
            raise CheckpointError(
                f"{path}: refused, and nothing of it run: it calls for {name[1]}, where a checkpoint has only tensors"
            ) from error
        raise CheckpointError(f"{path}: neither a checkpoint of torch.save nor a safetensors file") from error
    except Exception as error:  # of whatever kind: the bytes of a damaged pickle are instructions to its reader
        raise CheckpointError(f"{path}: damaged, or no checkpoint ({type(error).__name__}: {error})") from error


def _is_state(data: object) -> bool:
    return (
        isinstance(data, Mapping)
        and bool(data)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in data.items())
    )


def _kinds(data: Mapping) -> str:
    return ", ".join(f"{key} ({type(value).__name__})" for key, value in data.items())


def _unwrap(data: object, source: str, entry: str | None) -> tuple[Mapping[str, Tensor], str]:
    """The state dict in what a file holds, and the names of the entries that lead there."""
    path: list[str] = []
    if entry is not None:
        if not isinstance(data, Mapping) or entry not in data:
            raise CheckpointError(f"{source}: has no entry {entry!r}")
        path, data = [entry], data[entry]
    while not _is_state(data):
        if not isinstance(data, Mapping) or not data:
            raise CheckpointError(f"{source}: expected a dict of tensors, but got {type(data).__name__}")
        inner = [name for name in ENTRIES if isinstance(data.get(name), Mapping)]
        if len(inner) > 1:
            raise CheckpointError(
                f"{source}: has several state dicts, {', '.join(inner)}: name the entry that is meant"
            )
        if not inner:
            others = {key: value for key, value in data.items() if not isinstance(value, Tensor)}
            raise CheckpointError(f"{source}: expected a dict of tensors, but got one with {_kinds(others)}")
        path.append(inner[0])
        data = data[inner[0]]
    return data, ".".join(path)  # type: ignore[return-value]


def read_checkpoint(source: StatePath | Mapping, entry: str | None = None) -> Checkpoint:
    """The state dict in a file of torch.save's or safetensors', or in what such a file would hold.

    It may lie in an entry of the file that is named as usual (ENTRIES), or `entry`, and its keys may have a prefix
    (PREFIXES). No code of the file is run. Raises CheckpointError.
    """
    if isinstance(source, Mapping):
        data, kind, name = source, "state dict", "weights"
    else:
        name = os.fspath(source)
        data, kind = _load(Path(source))  # type: ignore[assignment]
    state, found = _unwrap(data, name, entry)
    prefix = ""
    while common := next((p for p in PREFIXES if all(key.startswith(prefix + p) for key in state)), None):
        prefix += common
    return Checkpoint({key[len(prefix) :]: value for key, value in state.items()}, kind, found, prefix)


def rename(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[State, dict[str, dict[str, str]]]:
    """The state dict under the model's keys, as far as RULES know them; and what was renamed, by rule."""
    result, renamed = {}, {}  # type: State, dict[str, dict[str, str]]
    for key, value in state.items():
        new = key
        for rule in RULES if key not in expected else ():
            candidate = re.sub(rule.pattern, rule.replacement, key)
            if candidate != key and candidate in expected and candidate not in state:
                new = candidate
                renamed.setdefault(rule.name, {})[key] = new
        result[new] = value
    return result, renamed


def _same_linear_map(got: Tensor, want: Tensor) -> bool:
    """A linear layer's weight and that of a convolution over the whole map: (O, C H W) and (O, C, H, W)."""
    return {got.dim(), want.dim()} == {2, 4} and got.flatten(1).shape == want.flatten(1).shape


def fit(model: nn.Module, state: Mapping[str, Tensor], name: str = "the model") -> Fit:
    """The state dict as model.load_state_dict takes it strictly. Raises MismatchError with all that does not fit."""
    expected = model.state_dict()
    state, renamed = rename(state, expected)
    wrong = Mismatches(unexpected=[key for key in state if key not in expected])
    result: State = {}
    reshaped, cast, filled = {}, {}, []  # type: dict, dict[str, list[str]], list[str]
    for key, want in expected.items():
        if key not in state:
            if key.endswith("num_batches_tracked"):
                filled.append(key)
                result[key] = torch.zeros((), dtype=want.dtype)
            else:
                wrong.missing.append(key)
            continue
        got = state[key]
        if got.shape != want.shape:
            if not _same_linear_map(got, want):
                wrong.shapes[key] = (tuple(got.shape), tuple(want.shape))
                continue
            reshaped[key] = (tuple(got.shape), tuple(want.shape))
            got = got.reshape(want.shape)
        if got.dtype != want.dtype:
            types = str(got.dtype).removeprefix("torch."), str(want.dtype).removeprefix("torch.")
            if got.dtype.is_floating_point != want.dtype.is_floating_point or got.dtype.is_complex:
                wrong.dtypes[key] = types
                continue
            cast.setdefault(" to ".join(types), []).append(key)
            got = got.to(want.dtype)
        result[key] = got
    if wrong:
        raise MismatchError(name, wrong)
    return Fit(result, renamed, reshaped, cast, filled)


def write_checkpoint(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes .safetensors, .pt or .pth; the file is there complete, or not at all. ValueError on another extension."""
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"expected a name that ends in .safetensors, .pt or .pth, but got {str(path)!r}")
    state = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".safetensors":
            save_file = need("safetensors.torch", f"writing {path}", "checkpoint").save_file
            save_file(state, partial, metadata={"format": "pt"})
        else:
            torch.save(state, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
