"""fastcnn summary's figures: those of spec and papers, not of its own making."""

import json
import re
import sys

import pytest
import torch
from typer.testing import CliRunner

import fastcnn
from fastcnn.cli import app
from fastcnn.models import get_model, summary_page
from fastcnn.models.summary import summarize
from fastcnn.models.verify import example_batch


def summary_of(name):
    with torch.device("meta"):
        model = get_model(name)
    return summarize(model, tuple(example_batch(name, 1)[0].shape), name)


# The papers name their networks by these numbers of layers, or state them.
@pytest.mark.parametrize(("name", "depth"), [
    ("alexnet", 8), ("zfnet", 8), ("vgg11", 11), ("vgg13", 13), ("vgg16", 16), ("vgg19", 19), ("googlenet", 22),
    ("resnet18", 18), ("resnet50", 50), ("resnet152", 152), ("densenet121", 121), ("densenet201", 201),
])  # fmt: skip
def test_depth(name, depth):
    assert summary_of(name).depth == depth


def test_vgg16s_memory():
    """15,237,608 values with the input and the pooled maps (course notes of CS231n, 2016)."""
    result = summary_of("vgg16")
    assert result.activations == 15_237_608
    assert sum(layer.activations for layer in result.layers if layer.type in ("Conv2d", "Linear")) == 13_556_712
    assert result.layers[-1].receptive_field is None


def test_alexnets_receptive_fields_sizes_and_weights():
    layers = {layer.name: layer for layer in summary_of("alexnet").layers}
    names = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    assert [layers[n].receptive_field for n in names] == [11, 19, 51, 67, 99, 131, 163, 195]
    neurons = [layers[n].activations for n in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")]
    assert neurons == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    assert layers["conv1"].parameters == 34_848 + 96
    assert layers["conv1"].bytes == 4 * 290_400


def test_sparse_convolution():
    """LeNet-5's C3: 60 links of 25 taps at 100 places, where the dense layer has 96."""
    macs = [{layer.name: layer.macs for layer in summary_of(name).layers}["c3"] for name in ("lenet5", "lenet5_dense")]
    assert macs == [60 * 25 * 100, 96 * 25 * 100]


# spec/architectures.md, 1.2 to 1.11
@pytest.mark.parametrize(("name", "macs"), [
    ("alexnet", 724_406_816), ("alexnet_cs231n", 1_135_256_096), ("zfnet", 1_168_032_896),
    ("zfnet_cs231n", 2_476_704_896), ("vgg11", 7_609_090_048), ("vgg13", 11_308_466_176), ("vgg16", 15_470_264_320),
    ("vgg19", 19_632_062_464), ("googlenet", 1_582_671_872), ("googlenet_tv", 1_498_376_192),
    ("inception_v3", 5_713_216_096), ("inception_v4", 12_253_974_624), ("inception_resnet_v2", 13_155_794_016),
    ("resnet18", 1_814_073_344), ("resnet34", 3_663_761_408), ("resnet50", 4_089_184_256),
    ("resnet101", 7_801_405_440), ("resnet152", 11_513_626_624), ("resnetv2_50", 4_089_184_256),
    ("wide_resnet50_2", 11_398_021_120), ("wide_resnet101_2", 22_753_050_624), ("resnext50_32x4d", 4_230_479_872),
    ("resnext101_32x8d", 16_414_015_488), ("resnext101_64x4d", 15_460_270_080), ("densenet121", 2_834_161_664),
    ("squeezenet1_1", 349_151_936),
])  # fmt: skip
def test_multiply_adds(name, macs):
    assert summary_of(name).macs == macs


def test_receptive_field_is_the_gradients_support():
    """Of three 3x3 convolutions, the second strided, and a pooling: measured as the inputs that a value depends on."""
    model = torch.nn.Sequential(
        fastcnn.nn.Conv2d(1, 2, 3, padding=1), fastcnn.nn.Conv2d(2, 2, 3, stride=2, padding=1),
        fastcnn.nn.MaxPool2d(3, 2), fastcnn.nn.Conv2d(2, 1, 3, dilation=2),
    )  # fmt: skip
    x = torch.rand(1, 1, 65, 65, requires_grad=True)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1)
    pooled = torch.nn.Sequential(
        model[0], model[1], torch.nn.AvgPool2d(3, 2), model[3]
    )  # the same windows, all of them
    y = pooled(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    support = x.grad[0, 0].any(1).nonzero().flatten()
    field = int(support[-1] - support[0]) + 1
    assert summarize(model, (1, 1, 65, 65)).layers[-1].receptive_field == field


def test_the_model_stays_what_it_was():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Dropout()).train()
    summarize(model, (1, 1, 8, 8))
    assert model.training
    assert model[0].weight.device.type == "cpu"


def test_bottleneck_inception_macs():
    """Inception 4a's ancestor on 28x28x256: naive 854,196,224, with bottlenecks 271,351,808 multiply-adds."""

    def conv(i, o, k):
        return torch.nn.Conv2d(i, o, k, padding=k // 2, bias=False)

    naive = [conv(256, 128, 1), conv(256, 192, 3), conv(256, 96, 5)]
    assert sum(summarize(c, (1, 256, 28, 28)).macs for c in naive) == 854_196_224
    narrow = [conv(256, 64, 1), conv(256, 64, 1), conv(256, 128, 1), conv(256, 64, 1)]
    wide = [conv(64, 192, 3), conv(64, 96, 5)]
    total = sum(summarize(c, (1, 256, 28, 28)).macs for c in narrow)
    assert total + sum(summarize(c, (1, 64, 28, 28)).macs for c in wide) == 271_351_808


def test_command():
    run = CliRunner().invoke(app, ["summary", "vgg16"])
    assert run.exit_code == 0
    assert "parameters 138,357,544" in run.stdout
    assert "activations 15,237,608 (60.95 MB, twice that with gradients)" in run.stdout
    data = json.loads(CliRunner().invoke(app, ["summary", "lenet5", "--json"]).stdout)
    assert data["parameters"] == 60_000
    assert data["flops"] == 2 * data["macs"]
    assert data["macs"] == 117_600 + 150_000 + 48_000 + 10_080  # c1, c3's 60 links, c5, f6
    assert CliRunner().invoke(app, ["summary", "alexnet", "--input", "1,3,8,8"]).exit_code == 2
    assert CliRunner().invoke(app, ["summary", "nonet"]).exit_code == 2


def page_of(name):
    with torch.device("meta"):
        model = get_model(name)
    return summary_page.render(summarize(model, tuple(example_batch(name, 1)[0].shape), name), model)


def test_page():
    """Every layer is in it, with its figures and bars in proportion to the largest; and nothing from outside."""
    page, result = page_of("alexnet"), summary_of("alexnet")
    rows = re.findall(r"<tr.*?</tr>", page[page.index("<tbody>") : page.index("</tbody>")], re.DOTALL)
    assert len(rows) == len(result.layers)
    most = max(layer.macs for layer in result.layers)
    for row, layer in zip(rows, result.layers):
        assert f">{layer.name}<" in row
        assert " \u00d7 ".join(map(str, layer.output)) in row
        if layer.macs:
            assert f"{layer.macs:,}<" in row
            assert f"width:{100 * layer.macs / most:.1f}%" in row
        assert f"{layer.parameters:,}<" in row or not layer.parameters
    assert f"<b>{result.parameters:,}</b>" in page
    assert "11x11, stride 4<" in page
    assert "<script" not in page
    assert not re.findall(r"(?:src|href|url)\s*[=(]", page)


def test_shares_of_the_parameters():
    """Spec, A12: fc6 61.9 %, fc7 27.5 %, conv3 1.45 %."""
    layers = summary_of("alexnet").layers
    slices = summary_page.chart("parameters", {layer.name: layer.parameters for layer in layers}).slices
    percent = {s.name: round(s.percent, 2) for s in slices}
    assert (percent["fc6"], percent["fc7"], percent["conv3"]) == (61.93, 27.53, 1.45)
    assert [s.name for s in slices] == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert slices[-1].start + slices[-1].percent == pytest.approx(100)
    deep = summary_page.chart("MACs", {layer.name: layer.macs for layer in summary_of("resnet50").layers})
    assert [s.name for s in deep.slices] == ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]


def test_links_of_lenets_c3():
    page = page_of("lenet5")
    assert page.count('class="link"') == 60
    assert "60 of 96 links" in page
    assert "Links of" not in page_of("lenet5_dense")


def test_page_command(tmp_path):
    run = CliRunner().invoke(app, ["summary", "lenet5", "--html", str(tmp_path / "a.html"), "--json"])
    assert run.exit_code == 0
    assert json.loads(run.stdout)["parameters"] == 60_000
    assert "60,000" in (tmp_path / "a.html").read_text()
    assert CliRunner().invoke(app, ["summary", "lenet5", "--html", str(tmp_path / "no" / "a.html")]).exit_code == 2


def test_page_without_jinja(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"an HTML summary needs jinja2: pip install 'fastcnn\[demo\]'"):
        page_of("lenet5")
