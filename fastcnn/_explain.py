"""Which kernel runs for a call, with which tile, why, what else was considered and how to choose otherwise."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from . import _library, functional
from ._config import STOCK as ATEN
from ._config import config, road
from .ops import _triton
from .ops._define import memory_format
from .ops._face import FLOATING, TF32

# Stock kernels that a fastcnn function falls back to. Others (linear, dropout, ...) are no business of fastcnn's.
STOCK = {
    "convolution", "convolution_overrideable", "mkldnn_convolution", "max_pool2d_with_indices", "avg_pool2d",
    "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "avg_pool3d", "max_unpool2d", "native_batch_norm",
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """One dispatched kernel."""

    where: str  # module path, or '' for a plain call
    op: str
    input: str
    kernel: str
    tile: str
    why: str
    considered: list[str] = field(default_factory=list)
    override: str = ""


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: one Choice per dispatched kernel, in the order of the calls."""

    rows: list[Choice]

    def to_dict(self) -> list[dict]:
        """The rows as plain data."""
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        blocks = []
        for row in self.rows:
            lines = [f"{row.where or row.op}: {row.op} {row.input}", f"  kernel:     {row.kernel}"]
            lines += [f"  tile:       {row.tile}"] if row.tile else []
            lines += [f"  why:        {row.why}"]
            lines += [f"  considered: {other}" for other in row.considered]
            lines += [f"  override:   {row.override}"] if row.override else []
            blocks.append("\n".join(lines))
        return "\n".join(blocks) if blocks else "no call that fastcnn has a kernel for"


def _channels_last(x: torch.Tensor) -> bool:
    return x.dim() == 4 and x.stride(1) == 1 and x.shape[1] > 1


def _describe(x: torch.Tensor) -> str:
    layout = "channels_last" if _channels_last(x) else "contiguous"
    return f"{str(x.dtype).removeprefix('torch.')} {'x'.join(map(str, x.shape))} {layout}"


def _conv2d(
    where: str, x: torch.Tensor, weight: torch.Tensor, geometry: tuple[int, ...], how: tuple[int, bool]
) -> Choice:
    """how: the accuracy, and whether the weight comes packed."""
    plan = _library._C.explain_conv2d(
        tuple(x.shape),
        tuple(weight.shape),
        geometry,
        x.element_size(),
        x.dtype == torch.float64,
        x.dtype == torch.bfloat16,
        _channels_last(x),
        *how,
    )
    isa, groups = _library.cpu_capability(), geometry[6]
    considered, unit = [], "pixels"
    if plan["algorithm"] == "winograd":
        unit = "4x4 tiles"
        why = "3x3 of stride 1: F(4x4, 3x3) multiplies a quarter as often; its error is about twice the direct sum's"
        considered.append("direct: what set_accuracy('strict') runs")
        tile = f"{14 if isa == 'avx512' else 6} tiles x {2 * plan['lanes']} output channels"
    elif plan["algorithm"] == "lane_grouped":
        why = f"{weight.shape[1]} channels in and out per group: whole groups lie side by side in a vector"
        considered.append("direct: would leave most lanes of a vector idle")
        tile = f"up to 8 pixels x {plan['lanes']} channels"
    else:
        why = "any geometry: pixels x output channels in registers, inputs broadcast, weights packed"
        pixels, narrow = (14, 7) if isa == "avx512" else (6, 3)
        tile = f"{pixels} pixels x {2 * plan['lanes']} output channels"
        if plan["cols"] <= narrow and plan["panels"] > 2:
            tile = f"{narrow} pixels x {4 * plan['lanes']} output channels (the map is narrow)"
        if groups > 1:
            considered.append("lane_grouped: needs 1, 2, 4 or 8 channels per group, as many in as out")
    if plan["algorithm"] != "winograd":
        considered.append(f"winograd: {_no_winograd(weight, geometry, how[0])}")
    if plan["algorithm"] == "direct_bf16":
        why += "; bfloat16 products of two channels added by one instruction"
    if plan["one_row"]:
        why += "; 1x1: all pixels as one row"
    if plan["staged"]:
        why += f"; input copied in blocks of {plan['scratch_bytes'] // 1024} KiB: padding, layout or dtype"
    tile += f"; {plan['tasks']} tasks of {plan['rows']}x{plan['cols']} {unit}"
    return Choice(
        where, "conv2d", f"{_describe(x)}, weight {'x'.join(map(str, weight.shape))}, groups {groups}",
        f"{plan['algorithm']} ({isa})", tile, why, considered,
        "set_accuracy('strict') leaves out Winograd, FASTCNN_CPU_CAPABILITY lowers the instruction set, "
        "FASTCNN_DISABLE=1 runs stock PyTorch",
    )  # fmt: skip


def _no_winograd(weight: torch.Tensor, geometry: tuple[int, ...], accuracy: int) -> str:
    """Why a convolution that does not run by Winograd's algorithm does not."""
    if tuple(weight.shape[2:]) != (3, 3) or tuple(geometry[:2] + geometry[4:6]) != (1, 1, 1, 1):
        return "needs a 3x3 kernel, stride 1 and dilation 1"
    if max(geometry[2:4]) > 2:
        return "needs padding of at most 2"
    if accuracy == 0:
        return "accuracy is 'strict'"
    if min(weight.shape[1], weight.shape[0] // geometry[6]) < 16:
        return "needs 16 channels in and out per group"
    return "too few pixels to repay its weights, of which there are four times as many"


def _bn_relu(where: str, x: torch.Tensor, weight: torch.Tensor, geometry: tuple[int, ...], accuracy: int) -> Choice:
    conv = _conv2d(where, x, weight, geometry, (accuracy, False))
    kernel = f"{conv.kernel}, then batch_norm_relu ({_library.cpu_capability()})"
    why = f"{conv.why}; the batch's mean and variance are taken as the outputs are stored"
    considered = [*conv.considered, "one pass over the output: its statistics must be known first"]
    return replace(conv, op="conv2d_bn_relu", kernel=kernel, why=why, considered=considered)


def _other(where: str, name: str, x: torch.Tensor) -> Choice:
    kernel = f"{name} ({_library.cpu_capability()})"
    if name == "lrn_max_pool2d":
        kernel = f"local_response_norm, then max_pool2d ({_library.cpu_capability()})"
        lanes = "channels" if _channels_last(x) else "pixels"
        why = f"both ops' kernels on bands that stay in cache; vectors over {lanes}, as they lie in memory"
    elif name == "max_unpool2d":
        why = "the only kernel; a plane's values in raster order, so that the same one wins in every run"
    elif name == "local_conv2d":
        why = "the only kernel; vectors over samples, so that each weight is read once"
    elif name == "conv_transpose2d":
        why = "conv2d's kernel for its input gradient; vectors over output channels"
    else:
        lanes = "channels" if _channels_last(x) else "pixels"
        why = f"the only kernel; vectors over {lanes}, as they lie in memory"
    return Choice(where, name, _describe(x), kernel, "", why)


def _cuda(where: str, name: str, x: torch.Tensor) -> Choice:
    why = "fastcnn's CUDA kernels, chosen by csrc/cuda from sizes and types alone; not timed on any GPU"
    override = "FASTCNN_DISABLE=1 runs stock PyTorch, FASTCNN_SKIP_CUDA_BUILD=1 at installation leaves them out"
    return Choice(where, name, _describe(x), f"{name} (CUDA)", "", why, override=override)


def _cuda_conv2d(
    where: str, op: str, x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, geometry: tuple[int, ...], tf32: bool
) -> Choice:
    """geometry: stride, padding and dilation (two each), groups. tf32: float32 may be rounded to it."""
    choice, transposed = _cuda(where, op, x), op == "conv_transpose2d"
    if 0 in y.shape:
        return replace(choice, kernel="none", why="the output is empty: nothing is launched")
    last = memory_format(x) is memory_format(y) is torch.channels_last
    kind = x.element_size(), x.dtype == torch.float64, x.dtype == torch.bfloat16
    sizes = tuple((y if transposed else x).shape), tuple(weight.shape)
    found = _library._C.explain_cuda_conv2d(*sizes, geometry, *kind, last, transposed, tf32)
    why = f"{found['why']}; not timed on any GPU"
    if found["copies"]:
        why += "; NCHW input is copied to NHWC first, and the output back"
    considered = [f"{kernel}: would run {condition}" for kernel, condition in found["others"]]
    if not transposed and (geometry[6] > 1 or tuple(weight.shape[2:]) == (1, 1)):
        taken, no = _triton.route(x, weight, geometry[2:4], geometry[6], TF32 * tf32)
        considered.append(f"Triton: {_triton.why_not() or (_triton.BIAS if taken else no)}")
    return replace(
        choice,
        input=f"{choice.input}, weight {'x'.join(map(str, weight.shape))}, groups {geometry[6]}",
        kernel=f"{found['kernel']}{', then batch_norm_relu' if op == 'conv2d_bn_relu' else ''} (CUDA)",
        tile=found["tile"],
        why=why,
        considered=considered,
    )


def _on_triton(where: str, name: str, x: torch.Tensor, weight: torch.Tensor, args: tuple, y: torch.Tensor) -> Choice:
    """args: the op's, of which the last says whether float32 may be rounded to TF32."""
    from fastcnn.kernels import grouped_forward, pointwise_forward
    from fastcnn.kernels.register import processors

    tf32, pixels, chip = args[-1], y.shape[0] * y.shape[2] * y.shape[3], processors(x)
    outputs, inputs = weight.shape[:2]
    stats = name.endswith("_stats")
    if name.startswith("pointwise"):
        groups, padding, geometry = 1, (0, 0), (*args[5 if stats else 7], 0, 0, 1, 1, 1)
        tile = str(pointwise_forward.tile_of(pixels, inputs, outputs, x.dtype, tf32, chip, stats=stats))
    else:
        stride, padding, dilation, groups = args[2:6] if stats else args[5:9]
        geometry = (*stride, *padding, *dilation, groups)
        tile = str(grouped_forward.tile_of(pixels, groups, inputs, outputs // groups, x.dtype, chip, stats))
    other = _cuda_conv2d(where, "conv2d", x, weight, y, tuple(geometry), tf32)
    return replace(
        other,
        kernel=f"{name.partition('_')[0]} (Triton)",
        tile=tile,
        why=f"{_triton.route(x, weight, padding, groups, TF32 * tf32)[1]}; not timed on any GPU",
        considered=[f"{other.kernel}: would run with FASTCNN_TRITON=0"],
        override=f"FASTCNN_TRITON=0 leaves Triton out, set_policy('fastest') times both; {other.override}",
    )


class _Recorder(TorchDispatchMode):
    def __init__(self, model: torch.nn.Module | None, states: dict[str, torch.Tensor] | None = None):
        """states: the tensors that stand for the model's parameters and buffers, if others than its own."""
        super().__init__()
        self.rows: list[Choice] = []
        self.path: list[str] = []
        modules = list(model.named_modules()) if model is not None else []
        self.names = {module: name for name, module in modules}
        self.owners = {  # a fused op's modules are not called: their parameters and statistics tell
            id(t): name
            for name, module in modules
            for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        }
        self.owners |= {id(t): name.rpartition(".")[0] for name, t in (states or {}).items()}

    def enter(self, module, args) -> None:
        """A forward pre-hook: what is dispatched from now on belongs to this module."""
        self.path.append(self.names.get(module, self.path[-1] if self.path else ""))

    def leave(self, module, args, output) -> None:
        """A forward hook."""
        self.path.pop()

    def _add(self, row: Choice) -> None:
        if road.notes:
            how, *times = road.notes
            row = replace(row, why=f"{row.why}; {how}", considered=[*row.considered, *times])
        self.rows.append(row)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        called, name = self.path[-1] if self.path else "", func._opname
        where = next((self.owners[id(a)] for a in args[1:] if id(a) in self.owners), called)
        if func.namespace == "fastcnn" and not name.startswith("_pack"):
            if args[0].is_cuda:
                result = func(*args, **(kwargs or {}))
                self._add(self._on_cuda(where, name.strip("_").removesuffix("_values"), args, result))
                return result
            elif name in ("conv2d", "_conv2d"):
                geometry = args[5] if name == "_conv2d" else (*args[4], *args[5], *args[6], args[7])
                how = args[-1], name == "_conv2d" and args[2] is not None
                self._add(_conv2d(where, args[0], args[1], tuple(geometry[:7]), how))
            elif name in ("conv2d_bn_relu", "_conv2d_bn_relu"):
                geometry = (*args[6], *args[7], *args[8], args[9])
                self._add(_bn_relu(where, args[0], args[1], geometry, args[-1]))
            else:
                self._add(_other(where, name.strip("_").removesuffix("_values"), args[0]))
        elif name in STOCK:
            x = args[0]
            if config.disabled:
                why = "FASTCNN_DISABLE is set"
            elif road.candidate == ATEN:
                why = "the fastest when timed"
            elif x.is_cuda and _library.cuda_missing:
                why = f"fastcnn has no CUDA kernels here: {_library.cuda_missing}"
            elif not (x.is_cpu or x.is_cuda):
                why = f"fastcnn has no {x.device.type} kernel for it"
            elif x.dtype in FLOATING:
                why = "a stock module or function, not fastcnn's"
            else:
                why = f"fastcnn computes floating-point tensors, not {x.dtype}"
            self._add(Choice(where, name, _describe(x), "stock PyTorch (ATen)", "", why))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _on_cuda(where: str, name: str, args: tuple, result) -> Choice:
        if name.startswith(("pointwise_conv2d", "grouped_conv2d")):
            return _on_triton(where, name, args[0], args[1], args, result[0] if name.endswith("_stats") else result)
        tf32 = False
        if name == "conv2d":  # the raw op has its geometry in one list
            tf32 = args[-1] >= TF32
            geometry = args[5][:7] if len(args) == 8 else (*args[4], *args[5], *args[6], args[7])
        elif name == "conv_transpose2d":
            geometry = (*args[3], *args[4], *args[6], args[7])
        elif name == "conv2d_bn_relu":
            geometry, tf32, result = (*args[6], *args[7], *args[8], args[9]), args[-1] >= TF32, result[0]
        else:
            return _cuda(where, name, args[0])
        return _cuda_conv2d(where, name, args[0], args[1], result, tuple(geometry), tf32)


def explain(
    module_or_op: torch.nn.Module | Callable | str,
    *shapes: tuple[int, ...],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Explanation:
    """Which kernel runs for each call that module_or_op makes on inputs of these shapes, and why.

    module_or_op: a module (run in evaluation mode) or any function of tensors, such as
    ``functools.partial(F.max_pool2d, kernel_size=3, stride=2)``; a string names a function of fastcnn.functional.
    shapes: one for each tensor argument. Runs it once, on zeros of `dtype` (by default the module's, else float32)
    on `device`, to which a module's parameters are copied. For device "cuda" no GPU is needed: without one, tensors
    without data tell what would run.
    """
    call = getattr(functional, module_or_op) if isinstance(module_or_op, str) else module_or_op
    for shape in shapes:
        if math.prod(shape) < 0:
            raise ValueError(f"explain: expected sizes of at least 0, but got {tuple(shape)}")
    if dtype is None:
        parameters = call.parameters() if isinstance(call, torch.nn.Module) else iter(())
        dtype = next((p.dtype for p in parameters), torch.float32)
    model = call if isinstance(call, torch.nn.Module) else None
    target = torch.device(device)
    with contextlib.ExitStack() as undo, torch.no_grad():
        if target.type == "cuda" and not torch.cuda.is_available():
            undo.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        inputs = [torch.zeros(shape, dtype=dtype, device=target) for shape in shapes]
        states = _states_on(model, target) if model is not None else {}
        recorder = _Recorder(model, states)
        for m in () if model is None else model.modules():
            undo.callback(setattr, m, "training", m.training)
            m.training = False
        # Every module's hooks, which unlike a module's own leave fused calls fused.
        undo.enter_context(_hook(register_module_forward_pre_hook(recorder.enter)))
        undo.enter_context(_hook(register_module_forward_hook(recorder.leave, always_call=True)))
        with recorder:
            if model is not None and states:
                torch.func.functional_call(model, states, tuple(inputs))
            else:
                call(*inputs)
    return Explanation(recorder.rows)


def _states_on(model: torch.nn.Module, device: torch.device) -> dict[str, torch.Tensor]:
    """The parameters and buffers that lie elsewhere, as they would be on this device."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: t.detach().to(device) for name, t in tensors if t.device.type != device.type}


@contextlib.contextmanager
def _hook(handle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
