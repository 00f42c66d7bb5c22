"""Takes the launches of fastcnn's Triton kernels from their ops' own host code, and compiles them without a GPU."""

import contextlib
import hashlib
import io
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, MockTensor, create_function_from_signature

from . import toolchain

CACHE = toolchain.CACHE / "triton"
SHORT = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


class Pointer(MockTensor):
    """What Triton asks of a tensor before it compiles: the type, and whether 16 divides the address. torch's allocators
    align storages; 0 stands for their addresses."""

    def __init__(self, tensor: Tensor):
        super().__init__(tensor.dtype)
        self.offset = tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        return self.offset


@dataclass(frozen=True)
class Specialization:
    """What decides about the machine code besides the kernel's text and the architecture."""

    signature: dict[str, str]
    constexprs: dict[tuple, object]
    attrs: dict[tuple, list]
    options: dict[str, object]  # num_warps, num_stages


@dataclass(frozen=True)
class Launch:
    kernel: JITFunction
    arguments: dict[str, object]  # by parameter
    options: dict[str, object]
    grid: tuple[int, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.arguments.items() if isinstance(value, Tensor)}

    @property
    def parameters(self) -> list[object]:
        """The values of the compiled kernel's parameters, tensors among them: constants have none."""
        types = self.specialize(80).signature
        return [value for name, value in self.arguments.items() if types[name] != "constexpr"]

    def specialize(self, arch: int) -> Specialization:
        """By Triton's own rules, which look at values: a 1 becomes a constant, a multiple of 16 is promised as such."""
        backend = make_backend(target_of(arch))
        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        values = {k: Pointer(v) if isinstance(v, Tensor) else v for k, v in self.arguments.items()}
        bound, found, _ = bind(**values, **self.options)
        _, signature, constexprs, attrs = self.kernel._pack_args(backend, self.options, bound, found, self.options)
        return Specialization(signature, constexprs, attrs, self.options)

    def name(self, arch: int) -> str:
        """'pointwise_kernel<bf16, BLOCK_P=128, RELU, 4 warps, 3 stages>': with every constant but what is off."""
        s = self.specialize(arch)
        first = next((SHORT.get(t.dtype, str(t.dtype)) for t in self.tensors.values()), "")
        names = list(s.signature)
        constants = {names[path[0]]: value for path, value in s.constexprs.items()}
        parts = [
            name if value is True else f"{name}={value}"
            for name, value in constants.items()
            if value is not None and value is not False and not isinstance(value, JITFunction)
        ]
        loose = [
            name
            for i, (name, kind) in enumerate(s.signature.items())
            if kind != "constexpr" and not any(each[0] == "tt.divisibility" for each in s.attrs.get((i,), ()))
        ]
        parts += [f"{value} {option[4:]}" for option, value in sorted(self.options.items(), reverse=True)]
        return f"{self.kernel.__name__}<{', '.join([first, *parts])}>" + (
            f" not 16 | {' '.join(loose)}" if loose else ""
        )


def target_of(arch: int) -> GPUTarget:
    return GPUTarget("cuda", arch, 32)


class Taken:
    """Stands for a kernel: hands over its launches instead of starting them."""

    def __init__(self, kernel, take: Callable[[Launch], None]):
        self.kernel, self.take = getattr(kernel, "fn", kernel) if not isinstance(kernel, JITFunction) else kernel, take

    def __getitem__(self, grid: Sequence[int] | Callable):
        def launch(*arguments: object, **named: object) -> None:
            options = {k: named.pop(k) for k in list(named) if k in ("num_warps", "num_stages")}
            bound = self.kernel.signature.bind(*arguments, **named)
            bound.apply_defaults()
            size = grid(bound.arguments) if callable(grid) else grid
            defaults = {"num_warps": 4, "num_stages": 3}
            self.take(Launch(self.kernel, dict(bound.arguments), {**defaults, **options}, tuple(map(int, size))))

        return launch


@contextmanager
def taken(take: Callable[[Launch], None], processors: int = 108) -> Iterator[None]:
    """While it lasts, fastcnn's Triton ops compute CPU tensors by their kernels, whose launches go to `take`."""
    stands_for = {
        "wrap_triton": lambda kernel: Taken(kernel, take),
        "on_triton": lambda x: True,
        "processors": lambda x: processors,
    }
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("fastcnn.kernels"):
                for attribute, value in stands_for.items():
                    if hasattr(module, attribute):
                        stack.enter_context(mock.patch.object(module, attribute, value))
        yield


def launches(call: Callable[[], object], processors: int = 108) -> list[Launch]:
    """What the call would start; nothing is computed."""
    found: list[Launch] = []
    with taken(found.append, processors):
        call()
    return found


@dataclass(frozen=True)
class Compiled:
    name: str  # in the machine code
    ptx: str
    log: str  # of ptxas -v
    disassembly: str
    shared: int  # bytes, all of them dynamic


def source_of(kernel: JITFunction, s: Specialization) -> ASTSource:
    return ASTSource(kernel, signature=s.signature, constexprs=s.constexprs, attrs=s.attrs)


def compile_launch(launch: Launch, arch: int, cache_dir: Path = CACHE) -> Compiled:
    """Machine code for sm_<arch>; what has not changed is read from cache_dir."""
    s = launch.specialize(arch)
    constants = {path: getattr(value, "cache_key", value) for path, value in s.constexprs.items()}
    parts = (launch.kernel.cache_key, s.signature, constants, s.attrs, s.options, arch, triton.__version__)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    folder = cache_dir / f"{launch.kernel.__name__}.{arch}.{digest}"
    if not (folder / "sass.txt").exists():
        compile_to(folder, launch.kernel, s, arch)
    name, shared = (folder / "kernel.txt").read_text().split()
    ptx, log, sass = ((folder / f"{each}.txt").read_text() for each in ("ptx", "ptxas", "sass"))
    return Compiled(name, ptx, log, sass, int(shared))


def compile_to(folder: Path, kernel: JITFunction, s: Specialization, arch: int) -> None:
    log = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.compilation.always_compile = True  # ptxas must speak
        knobs.nvidia.dump_ptxas_log = True
        made = triton.compile(source_of(kernel, s), target=target_of(arch), options=s.options)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "cubin").write_bytes(made.asm["cubin"])
    (folder / "ptx.txt").write_text(made.asm["ptx"])
    (folder / "ptxas.txt").write_text(log.getvalue())
    (folder / "kernel.txt").write_text(f"{made.metadata.name} {made.metadata.shared}\n")
    disassembly = toolchain.run(toolchain.find("nvdisasm"), str(folder / "cubin"))
    (folder / "sass.txt").write_text(disassembly)  # last: what has it is complete
