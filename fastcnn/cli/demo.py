"""`fastcnn demo`: the main job, in one command."""

import time
from pathlib import Path
from typing import Annotated

import typer

from fastcnn.demo.report import need, render
from fastcnn.demo.speed import BATCH, Speed, time_network
from fastcnn.demo.training import EPOCHS, GOAL, Training, train_lenet5
from fastcnn.models import alexnet
from fastcnn.models.verify import example_batch, fixed_seed, verify

from ._arguments import Threads, existing_directory, refuse_disabled
from ._output import log, milliseconds, progress, stdout, table, working
from .doctor import examine, healthy
from .doctor import report as print_findings
from .verify import verdict

VERIFIED_IMAGES = 2  # more would add seconds of float64 and no new code path


def _train(epochs: int) -> Training:
    with progress() as bar:
        task = bar.add_task("training LeNet-5", total=epochs)
        return train_lenet5(epochs, after_epoch=lambda _: bar.advance(task))


def _print_speed(speed: Speed) -> None:
    rows = table(
        f"AlexNet, {speed.threads} threads, layers of {BATCH} images", "layer", "fastcnn ms", "PyTorch ms", "ratio"
    )
    for c in [*speed.layers, *speed.whole]:
        rows.add_row(c.name, milliseconds(c.fastcnn_s), milliseconds(c.stock_s), f"{c.ratio:.2f}x")
    stdout().print(rows)


def demo(
    output: Annotated[Path, typer.Option(callback=existing_directory, dir_okay=False, help="The HTML report.")] = Path(
        "fastcnn-demo.html"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training; fewer may miss the goal.")] = EPOCHS,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs.")] = 10,
    threads: Threads = None,
) -> None:
    """Train LeNet-5 on real digits, check and time AlexNet against PyTorch, and write an HTML report.

    Exit status 1 if the accuracy is below 97 % or a check fails.
    """
    refuse_disabled()
    started = time.perf_counter()
    for module in ("sklearn", "matplotlib", "jinja2"):
        need(module)
    console = stdout()
    findings = examine()
    print_findings(findings)
    if not healthy(findings):
        raise typer.Exit(1)

    log("training LeNet-5 on scikit-learn's digits")
    training = _train(epochs)
    console.print(
        f"LeNet-5: {100 * training.accuracy:.1f} % of {len(training.labels)} held-out digits right "
        f"after {epochs} epochs in {training.seconds:.0f} s"
    )
    with working("checking AlexNet's output and gradients against stock PyTorch and float64"), fixed_seed(0):
        network = alexnet()
        x, target = example_batch("alexnet", BATCH)
        verification = verify(network, x[:VERIFIED_IMAGES], target[:VERIFIED_IMAGES], "alexnet")
    console.print(f"AlexNet {'passed' if verification.passed else 'FAILED'}: {verdict(verification)}", soft_wrap=True)
    with working("timing AlexNet against stock PyTorch"):
        speed = time_network(network, x, target, runs)
    _print_speed(speed)

    environment = [(finding.name, finding.value) for finding in findings]
    output.write_text(render(environment, training, verification, speed), encoding="utf-8")
    log(f"done in {time.perf_counter() - started:.0f} s; open the report in a browser:")
    console.print(str(output.resolve()), soft_wrap=True, markup=False)
    if training.accuracy < GOAL:
        log(f"accuracy {training.accuracy:.3f} is below the goal of {GOAL}")
    if training.accuracy < GOAL or not verification.passed:
        raise typer.Exit(1)
