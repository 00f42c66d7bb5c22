"""Whole networks on the GPU, on fastcnn's kernels and on PyTorch's: inference, and steps of training."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fastcnn.models
from bench._alternate import alternate
from bench._gate import UNIT_ROUNDOFF, poison
from bench._rows import FORMATS
from fastcnn._config import disabled
from fastcnn.models._registry import default_classes
from fastcnn.models.verify import example_batch, loss_of, relative_error

from .machine import Ground, tf32_allowed

NETWORKS = ("alexnet", "vgg16", "resnet50", "googlenet", "resnext50_32x4d", "densenet121", "squeezenet1_1", "zfnet")


@dataclass(frozen=True)
class Job:
    network: str
    batch: int
    layout: str
    dtype: torch.dtype
    tf32: bool
    training: bool

    @property
    def precision(self) -> str:
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        what = "training" if self.training else "inference"
        return f"{self.network} b{self.batch} {self.layout} {self.precision} {what}"


def jobs() -> Iterator[Job]:
    kinds = ((torch.float16, False), (torch.float32, True), (torch.float32, False), (torch.bfloat16, False))
    for batch, (dtype, tf32), layout in itertools.product((32, 128, 1), kinds, ("channels_last", "contiguous")):
        for network in NETWORKS:
            yield Job(network, batch, layout, dtype, tf32, False)
            if batch == 32 and dtype is torch.float32:  # half precision trains with autocast and a scaler
                yield Job(network, batch, layout, dtype, tf32, True)


def small_jobs() -> Iterator[Job]:
    yield Job("lenet5", 2, "contiguous", torch.float32, True, False)
    yield Job("lenet5", 2, "channels_last", torch.float32, False, True)


def stock(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with disabled():
            return call()

    return run


def _step(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """A step of no length: it does the same work at each call, and leaves the same numbers."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step() -> Tensor:
        torch.manual_seed(1)  # dropout
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, model(x), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _results(job: Job, model: nn.Module, x: Tensor, call: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The output or the loss, and the parameters' gradients, computed over poisoned memory."""
    model.zero_grad(set_to_none=True)
    poison([x, *model.parameters()], job.dtype)
    y = call()
    return y.double(), [p.grad for p in model.parameters() if p.grad is not None]


def _errors(job: Job, model: nn.Module, x: Tensor, calls: tuple[Callable, Callable]) -> dict:
    """Of both sides against each other, in units of what the network's outputs may differ by.

    No useful bound follows from the arithmetic of so many layers. Roundings add up to some dozens of units of the
    largest output; cuDNN's Winograd in float32 is off by some hundreds. A wrong value anywhere is far above.
    Gradients differ by more: where a ReLU's input lies within rounding of zero, one side passes on what the other does
    not, and of n elements k such ones are sqrt(k/n) of the norm. On a CPU, of four images, that comes to 0.13 of
    DenseNet-121's in float32 and, with operands rounded to TF32, to 0.8 of ResNet-50's. One that was not computed is
    off by all of its norm, one of something else by more. (layers.py compares each convolution's gradients closely.)
    """
    (mine, gradients), (theirs, their_gradients) = (_results(job, model, x, call) for call in calls)
    shares = [relative_error(*pair) for pair in zip(gradients, their_gradients, strict=True)]
    most = 0.95 if job.tf32 else 0.5
    if wrong := [share for share in shares if not share <= most]:
        return {"refused": f"{len(wrong)} of {len(shares)} gradients differ, the first by {wrong[0]:.3g} of its norm"}
    units = 64 * 2.0**-11 if job.tf32 else (1024 if job.dtype == torch.float32 else 64) * UNIT_ROUNDOFF[job.dtype]
    allowed = units * float(theirs.abs().max())
    worst = float((mine - theirs).abs().max())
    if not worst <= allowed:
        return {"refused": f"the two differ by {worst:.3g}, of {allowed:.3g} that rounding explains"}
    record = {"difference_over_allowed": worst / allowed if allowed else 0.0}
    return record | ({"gradient_difference": max(shares)} if shares else {})


def measure(job: Job, ground: Ground, seconds: float) -> dict:
    record = {
        "op": "training" if job.training else "network", "layer": job.network, "batch": job.batch, "layout": job.layout,
        "precision": job.precision, "direction": "training" if job.training else "forward",
    }  # fmt: skip
    torch.manual_seed(0)
    with ground.device:  # initial weights are drawn where they are needed: VGG's take a CPU seconds
        model = fastcnn.models.get_model(job.network)
    model = model.to(job.dtype, memory_format=FORMATS[job.layout])
    shape = example_batch(job.network, 1)[0].shape[1:]
    x = torch.randn(job.batch, *shape, generator=ground.generator(), device=ground.device)
    x = x.to(job.dtype).to(memory_format=FORMATS[job.layout])
    model.train(job.training)
    with tf32_allowed(job.tf32), torch.set_grad_enabled(job.training):
        target = torch.arange(job.batch, device=ground.device) % default_classes(job.network)
        fast: Callable[[], object] = _step(model, x, target) if job.training else lambda: model(x)
        calls = fast, stock(fast)
        record |= _errors(job, model, x, calls)
        if "refused" in record:
            return record
        mine, theirs = alternate(*calls, seconds, 3 if ground.dry else None, ground.block)
    return record | {
        "fastcnn_s": mine.median, "stock_s": theirs.median, "ratio": theirs.median / mine.median,
        "images_per_s": job.batch / mine.median, "stock_images_per_s": job.batch / theirs.median,
        "rounds": len(mine.seconds),
    }  # fmt: skip
