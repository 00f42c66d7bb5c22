"""Runs fastcnn's Triton ops on CPU tensors from the PTX that Triton makes of their kernels for sm_80."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bench.static.triton_launch import Launch, compile_launch, taken
from tests.ptx import Memory, Module

_modules: dict[str, Module] = {}


def bytes_of(tensor: Tensor) -> Tensor:
    """The tensor's whole storage: what a kernel may touch."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def run(launch: Launch) -> None:
    """One launch, whose tensors then hold what the kernel left in them."""
    compiled = compile_launch(launch, 80)
    module = _modules.setdefault(compiled.ptx, Module(compiled.ptx))
    memory, addresses = Memory(), {}
    for tensor in launch.tensors.values():
        if (storage := tensor.untyped_storage()).data_ptr() not in addresses:
            addresses[storage.data_ptr()] = memory.add(bytes_of(tensor).numpy())
    arguments = [
        addresses[value.untyped_storage().data_ptr()] + value.storage_offset() * value.element_size()
        if isinstance(value, Tensor)
        else value
        for value in launch.parameters
    ]
    scratch = [0] * (len(module.program.functions[compiled.name].params) - len(arguments))  # Triton's own, of 0 bytes
    threads = 32 * int(launch.options["num_warps"])
    module.launch(compiled.name, launch.grid, (threads,), [*arguments, *scratch], memory, compiled.shared)
    for tensor in launch.tensors.values():
        left = memory.read(addresses[tensor.untyped_storage().data_ptr()])
        bytes_of(tensor).copy_(torch.from_numpy(left))


@contextmanager
def from_ptx(processors: int = 108) -> Iterator[list[Launch]]:
    """While it lasts, fastcnn's Triton ops compute CPU tensors from PTX; their launches are in the list."""
    launches: list[Launch] = []

    def take(launch: Launch) -> None:
        launches.append(launch)
        run(launch)

    with taken(take, processors):
        yield launches


def from_ptx_call(call: Callable[[], object]) -> object:
    with from_ptx():
        return call()
