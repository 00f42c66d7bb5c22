"""`fastcnn bench`: how fast are whole networks, against stock PyTorch?"""

from typing import Annotated

import torch
import typer

import fastcnn
from fastcnn._config import disabled
from fastcnn.models import get_model
from fastcnn.models.layers import Comparison, time_alternated
from fastcnn.models.verify import example_batch, fixed_seed, loss_of, relative_error

from ._arguments import Json, Models, Threads, refuse_disabled
from ._output import log, milliseconds, print_json, progress, stdout, table

# ||fastcnn - PyTorch|| / ||PyTorch|| of a network's output, above which nothing is timed. Both round some 1e4 terms per
# output and layer: about 1e-5 at worst. `fastcnn verify` is the sharp check.
SAME_OUTPUT = 1e-4


def time_model(name: str, batch: int, runs: int, training: bool) -> Comparison:
    """Medians of one network, channels_last, in float32: inference, or a forward and backward pass.

    Raises RuntimeError, and times nothing, where fastcnn's output is not PyTorch's.
    """
    with fixed_seed(0):
        model = get_model(name)
    model = model.train(training).to(memory_format=torch.channels_last)
    x, target = example_batch(name, batch)
    x = x.to(memory_format=torch.channels_last)

    def infer() -> torch.Tensor:
        with torch.no_grad():
            return model(x)

    def train() -> None:
        model.zero_grad()
        loss_of(model, model(x), target).backward()

    model.eval()
    output = infer()
    with disabled():
        difference = relative_error(output, infer())
    if not difference <= SAME_OUTPUT:
        raise RuntimeError(f"{name}: not timed, its output differs from stock PyTorch's by {difference:.1e}")
    model.train(training)
    return time_alternated(name, train if training else infer, runs)


def bench(
    models: Models = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch size; may be given again. 1 and 16.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each; medians are reported.")] = 10,
    training: Annotated[bool, typer.Option("--training", help="Time forward and backward, not inference.")] = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Time networks against eager PyTorch in channels_last, in turns; exit status 1 if an output is wrong."""
    refuse_disabled()
    log(f"{threads} threads, {fastcnn.cpu_capability()} kernels, torch {torch.__version__}, medians of {runs} runs")
    measured: list[tuple[int, Comparison]] = []
    cases = [(name, size) for name in models or [] for size in batch or (1, 16)]
    failures = []
    with progress() as bar:
        for name, size in bar.track(cases, description="timing"):
            try:
                measured.append((size, time_model(name, size, runs, training)))
            except RuntimeError as error:
                failures.append(str(error))
    if json:
        results = [
            {"model": c.name, "batch": size, "fastcnn_s": c.fastcnn_s, "torch_s": c.stock_s, "ratio": c.ratio}
            for size, c in measured
        ]
        settings = {"threads": threads, "runs": runs, "training": training, "layout": "channels_last"}
        versions = {"torch": torch.__version__, "fastcnn": fastcnn.__version__}
        print_json({**settings, **versions, "capability": fastcnn.cpu_capability(), "results": results})
    else:
        what = "forward and backward" if training else "inference"
        rows = table(f"{what}, {threads} threads", "model", "batch", "fastcnn ms", "PyTorch ms", "ratio")
        for size, c in measured:
            rows.add_row(c.name, str(size), milliseconds(c.fastcnn_s), milliseconds(c.stock_s), f"{c.ratio:.2f}x")
        stdout().print(rows)
    for failure in failures:
        log(failure)
    if failures:
        raise typer.Exit(1)
