"""The demo: its data, its training, its report, and the command that runs them."""

import importlib
import re

import pytest
import torch
from typer.testing import CliRunner

from fastcnn.cli import app
from fastcnn.data import deform_randomly, load_digits, split_thirds
from fastcnn.data.digits import BACKGROUND, FOREGROUND
from fastcnn.demo import report
from fastcnn.demo.speed import Speed
from fastcnn.demo.training import GOAL, Epoch, Training, train_lenet5
from fastcnn.models import lenet5
from fastcnn.models.layers import Comparison
from fastcnn.models.verify import Check, Verification

pytest.importorskip("sklearn")


def test_digits():
    images, labels = load_digits()
    assert images.shape == (1797, 1, 32, 32)
    assert images.dtype == torch.float32
    assert images.min().item() == pytest.approx(BACKGROUND)
    assert images.max().item() <= FOREGROUND + 1e-6
    assert (images[:, :, :4] == BACKGROUND).all()  # the field around the 24x24 digit
    assert labels.unique().tolist() == list(range(10))
    # bilinear interpolation by 3 keeps the pixels themselves, at the middle of each 3x3 block
    digits = importlib.import_module("sklearn.datasets").load_digits()
    ink = (images[:, 0, 5:28:3, 5:28:3] - BACKGROUND) / (FOREGROUND - BACKGROUND) * 16
    assert torch.allclose(ink.double(), torch.from_numpy(digits.images), atol=1e-4)


def test_split_is_fixed_and_disjoint():
    images, labels = load_digits()
    numbers = torch.arange(len(labels))
    train, _, test, _ = split_thirds(numbers, labels)
    assert len(test) == 599
    assert sorted([*train.tolist(), *test.tolist()]) == numbers.tolist()
    assert test[:3].tolist() == [2, 5, 8]
    assert torch.equal(split_thirds(images, labels)[2], images[test])


def test_deformed_digits():
    images = load_digits()[0][:64]
    deformed = deform_randomly(images, torch.Generator().manual_seed(0))
    again = deform_randomly(images, torch.Generator().manual_seed(0))
    assert torch.equal(deformed, again)
    assert deformed.shape == images.shape
    assert deformed.min().item() >= BACKGROUND - 1e-6
    assert deformed.max().item() <= FOREGROUND + 1e-6
    assert (deformed - images).abs().amax((1, 2, 3)).min() > 0.1  # each moved
    # area changes by at most 1/0.85**2, and digits stay whole within the field but for a few pixels
    ink, before = ((t - BACKGROUND).sum((1, 2, 3)) for t in (deformed, images))
    assert (ink / before).min() > 0.6
    assert (ink / before).max() < 1 / 0.85**2 * 1.1


def test_lenet5_learns_the_digits():
    curve = []
    training = train_lenet5(after_epoch=curve.append)
    assert training.history == curve
    assert training.accuracy >= GOAL
    assert training.trained_on + len(training.labels) == 1797
    assert curve[-1].accuracy == training.accuracy
    assert curve[-1].loss < curve[0].loss / 2


def test_training_repeats_exactly():
    first, second = (train_lenet5(epochs=1, seed=7) for _ in range(2))
    assert first.history == second.history
    assert torch.equal(first.predictions, second.predictions)


@pytest.fixture
def page():
    """A report of made-up results: 200 digits of which the last two were taken for something else."""
    images, labels = load_digits()
    predictions = labels[:200].clone()
    predictions[-2:] = (predictions[-2:] + 1) % 10
    history = [Epoch(40 / n, 1 - 0.5 / n) for n in range(1, 5)]
    training = Training(lenet5(), images[:200], labels[:200], predictions, 1198, 3.0, history)
    verification = Verification("alexnet", [Check("conv1", "output", 1e-7, 2e-7, 1e-6), Check("fc", "x", 1, 0, 0.5)])
    speed = Speed(2, 10, [Comparison(n, 1e-3, 2e-3) for n in "abc"], [Comparison("conv1", 0.002, 0.008)])
    return report.render([("torch", "<2.14 & more>")], training, verification, speed)


def test_report_shows_everything(page):
    assert "198 right, 2 wrong" in page
    assert page.count('class="mistake"') == 2
    assert page.index('class="mistake"') < page.index("<figure><img")  # mistakes first
    assert page.count('alt="a handwritten') == report.SHOWN_DIGITS
    assert page.count('alt="filter') == 6
    assert "training loss" in page  # a caption inside the SVG
    assert page.count('class="bar fast"') == page.count('class="bar stock"') == 1
    assert "width:25.0%" in page
    assert "4.00x" in page
    assert "FAIL" in page
    assert "Not all 2 checks passed" in page
    assert "&lt;2.14 &amp; more&gt;" in page


def test_report_needs_nothing_else(page):
    assert "<script" not in page
    assert "@import" not in page
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)


def test_missing_library(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"the demo needs sklearn: pip install 'fastcnn\[demo\]'"):
        report.need("sklearn.datasets")
    with pytest.raises(ImportError, match=r"pip install 'fastcnn\[demo\]'"):
        load_digits()


def test_command_writes_the_report_and_fails_below_the_goal(tmp_path):
    output = tmp_path / "report.html"
    result = CliRunner().invoke(app, ["demo", "--output", str(output), "--epochs", "1", "--runs", "1"])
    assert result.exit_code == 1, result.output
    assert "is below the goal" in result.stderr
    assert "AlexNet passed" in result.stdout
    assert result.stdout.rstrip().endswith(str(output))
    page = output.read_text(encoding="utf-8")
    for text in ("conv5", "fc8", "inference, 16 images", "forward and backward, 16 images", torch.__version__):
        assert text in page
