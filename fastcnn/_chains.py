"""Finds, in anybody's model, modules that may run as one op: each the only consumer of what the one before it makes."""

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ._fused import is_norm_act
from .nn.conv_bn import hooked

Chain = tuple[torch.nn.Module, ...]


@dataclass
class _Use:
    """How often a module is called, and who reads its outputs: a member each time, None for all else."""

    calls: int = 0
    readers: list[torch.nn.Module | None] = field(default_factory=list)

    def only_reader(self) -> torch.nn.Module | None:
        """The member that reads every output, once each, where nothing else reads any."""
        first = self.readers[0] if self.readers else None
        same = len(self.readers) == self.calls and all(r is first for r in self.readers)
        return first if same else None


Uses = dict[torch.nn.Module, _Use]


def find_chains(
    model: torch.nn.Module,
    wanted: Callable[[torch.nn.Module], bool],
    run: Callable[[], Any] | None,
) -> tuple[list[Chain], str]:
    """Chains of members that are `wanted`, and how they were looked for: in the graph of torch.fx.

    Where that cannot trace the model, in the graphs of the largest parts that it can, which tell what happens whatever
    the values are, and in a run of the model, which tells that nothing goes round a part's forward.
    """
    members = {m for m in model.modules() if _of_interest(m) and wanted(m) and not hooked(m)}
    uses: Uses = {}
    parts, why = _trace(model, members, uses)
    chains = _all(model, uses)
    if not why:
        return chains, f"traced: {len(chains)} chains"
    if run is None:
        return [], f"{why}, and no example to run"
    seen = set(_all(model, _record(members, run)))
    chains = [chain for chain in chains if chain in seen]
    return chains, f"{why}; {parts} parts traced and seen in a run: {len(chains)} chains"


def _all(model: torch.nn.Module, uses: Uses) -> list[Chain]:
    chains = [chain for module in model.modules() if (chain := _conv_chain(module, uses))]
    taken = {module for chain in chains for module in chain}
    rest = [module for module in model.modules() if module not in taken]
    return chains + [chain for module in rest if (chain := _norm_chain(module, uses))]


def _of_interest(module: torch.nn.Module) -> bool:
    kind = type(module)
    return kind in (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.ReLU) or (
        is_norm_act(kind)
        and type(module.drop) is torch.nn.Identity
        and type(module.act) in (torch.nn.ReLU, torch.nn.Identity)
        and not hooked(module.drop)
        and not hooked(module.act)
    )


def _normalizes(module: torch.nn.Module | None) -> bool:
    return type(module) is torch.nn.BatchNorm2d or is_norm_act(type(module))


def _norm_chain(bn: torch.nn.Module, uses: Uses) -> Chain | None:
    """A normalization and ReLU."""
    relu = _activation(bn, uses) if bn in uses and _normalizes(bn) else None
    return None if relu is None else (bn, relu)


def _conv_chain(conv: torch.nn.Module, uses: Uses) -> Chain | None:
    """A convolution, its normalization and maybe ReLU."""
    bn = _next(conv, uses) if type(conv) is torch.nn.Conv2d else None
    if bn is None or not _normalizes(bn) or bn.num_features != conv.out_channels:
        return None
    relu = _activation(bn, uses)
    return (conv, bn) if relu is None else (conv, bn, relu)


def _next(module: torch.nn.Module, uses: Uses) -> torch.nn.Module | None:
    """What reads all of the module's outputs, and nothing but them."""
    reader = uses[module].only_reader() if module in uses else None
    return reader if reader is not None and uses[reader].calls == uses[module].calls else None


def _activation(bn: torch.nn.Module, uses: Uses) -> torch.nn.Module | None:
    own = getattr(bn, "act", None) if is_norm_act(type(bn)) else None
    if type(own) is torch.nn.ReLU:
        return own
    relu = _next(bn, uses)
    return relu if type(relu) is torch.nn.ReLU else None


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d)  # of whatever subclass
        return isinstance(m, kinds) or super().is_leaf_module(m, module_qualified_name)


def _trace(module: torch.nn.Module, members: set[torch.nn.Module], uses: Uses) -> tuple[int, str]:
    """Adds what the graphs of the largest traceable parts of `module` tell; their number, and why they are parts."""
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # whatever the model's own code raises on proxies
        parts = sum(_trace(child, members, uses)[0] for child in module.children())
        return parts, f"not traceable ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"

    def called(node) -> torch.nn.Module | None:
        target = module.get_submodule(node.target) if node.op == "call_module" else None
        return target if target in members else None

    for node in graph.nodes:
        member = called(node)
        if member is not None:
            use = uses.setdefault(member, _Use())
            use.calls += 1
            use.readers += [called(user) for user in node.users]
    return 1, ""


class _Flow(TorchDispatchMode):
    """Follows what the members make to whatever reads it."""

    def __init__(self, members: set[torch.nn.Module]):
        super().__init__()
        self.members = members
        self.uses: Uses = {}
        self.inside: list[torch.nn.Module] = []
        self.made: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
        self.maker: dict[int, torch.nn.Module] = {}  # by a tensor's id, which counts while that tensor is alive

    def read(self, values: Any, reader: torch.nn.Module | None) -> None:
        for t in pytree.tree_leaves(values):
            if isinstance(t, torch.Tensor) and self.made.get(id(t)) is t:
                self.uses[self.maker[id(t)]].readers.append(reader)

    def enter(self, module, args, kwargs) -> None:
        if not self.inside:
            self.read((args, kwargs), module)
        self.inside.append(module)

    def leave(self, module, args, output) -> None:
        self.inside.pop()
        if not self.inside:
            self.uses.setdefault(module, _Use()).calls += 1
            self.made[id(output)], self.maker[id(output)] = output, module

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.inside:
            self.read((args, kwargs), None)
        return func(*args, **(kwargs or {}))


def _record(members: set[torch.nn.Module], run: Callable[[], Any]) -> Uses:
    flow = _Flow(members)
    with contextlib.ExitStack() as undo:
        for module in members:
            undo.callback(module.register_forward_pre_hook(flow.enter, with_kwargs=True).remove)
            undo.callback(module.register_forward_hook(flow.leave).remove)
        with flow:
            output = run()
    flow.read(list(flow.made.values()), None)  # what outlives the run, somebody keeps
    del output
    return flow.uses
