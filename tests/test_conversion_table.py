"""convert_ on other people's models: a sample always, all of docs/conversion.md where slow tests run."""

from pathlib import Path

import pytest
import torch

import fastcnn
from tests import conversion_table as conversion

pytest.importorskip("torchvision", reason="the models are torchvision's and timm's")
pytest.importorskip("timm", reason="the models are torchvision's and timm's")

PAGE = Path(__file__).parent.parent / "docs" / "conversion.md"
# Traced, traced in parts, tuples of outputs, lists of images, normalization with and without its own activation, before
# and behind convolutions, and convolutions of a subclass.
SAMPLE = {
    "resnet18": 20,
    "fcn_resnet50": 54,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 46,
    "timm/efficientvit_b0": 26,
    "timm/resnetv2_18": 17,
    "timm/mixnet_s": 10,
    "timm/xception41p": 40,
}


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name):
    assert conversion.convert_and_revert(name).chains == SAMPLE[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", conversion.all_models())
def test_every_model(name):
    row = conversion.convert_and_revert(name)
    assert f"| {row.model} | {row.replaced} | {row.chains} |" in PAGE.read_text()


def test_the_page_has_every_model():
    found = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert found[1:] == conversion.all_models()
    assert len(set(conversion.TIMM)) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(conversion.WITHOUT_CONV2D))
def test_models_that_are_left_out_have_no_convolution(name):
    from torchvision import models

    assert not any(isinstance(m, torch.nn.Conv2d) for m in models.get_model(name, weights=None).modules())


# In the last one convolution alone, the patches', is replaced.
@pytest.mark.parametrize("name", ["resnet18", "timm/convnext_atto", "timm/deit_tiny_patch16_224"])
def test_a_wrong_kernel_is_seen(name, monkeypatch):
    forward, fused = fastcnn.nn.Conv2d.forward, fastcnn._fused.fused_forward
    monkeypatch.setattr(fastcnn.nn.Conv2d, "forward", lambda self, x: forward(self, x) * 1.01)
    monkeypatch.setattr(fastcnn._fused, "fused_forward", lambda *args: fused(*args) * 1.01)
    with pytest.raises(RuntimeError, match="outputs differ"):
        conversion.convert_and_revert(name)


def test_an_incomplete_reversal_is_seen(monkeypatch):
    revert = fastcnn.revert_

    def forgetful(model):
        revert(model)
        model.conv1.__class__ = fastcnn.nn.Conv2d

    monkeypatch.setattr(fastcnn, "revert_", forgetful)
    with pytest.raises(AssertionError, match="classes differ after revert_"):
        conversion.convert_and_revert("resnet18")
