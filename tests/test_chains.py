"""Which modules run as one op: what consumes what, as torch.fx and a run of the model see it."""

import copy
import io

import pytest
import torch

import fastcnn

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Block(torch.nn.Module):
    """Convolution, normalization and ReLU."""

    def __init__(self, inputs=3, outputs=8):
        super().__init__()
        self.conv, self.bn, self.relu = (
            torch.nn.Conv2d(inputs, outputs, 3),
            torch.nn.BatchNorm2d(outputs),
            torch.nn.ReLU(),
        )
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


class Untraceable(torch.nn.Module):
    """A block in a model whose own forward depends on values."""

    def __init__(self, around=lambda block, x: block(x)):
        super().__init__()
        self.block, self.around = Block(), around

    def forward(self, x):
        return self.around(self.block, x) if x.isfinite().all() else x


def by(model, **options):
    report = fastcnn.convert_(model.eval(), **{"example": X, **options})
    return {m.name: m.by or m.reason for m in report.modules}, report


def test_a_traceable_part_of_a_model_that_is_none():
    found, report = by(Untraceable())
    assert found["block.conv"] == "conv2d_bn_relu"
    assert found["block.relu"] == "part of conv2d_bn_relu"
    assert "1 parts traced and seen in a run: 1 chains" in report.tracing


def test_a_part_called_many_times():
    def twice(block, x):
        return block(x) + block(x + 1)

    assert by(Untraceable(twice))[0]["block.conv"] == "conv2d_bn_relu"


kept = []


@pytest.mark.parametrize(
    "around",
    [
        lambda block, x: block(x) + block.conv(x),
        lambda block, x: block(x) + torch.nn.functional.gelu(block.bn(block.conv(x) * 2)),
        lambda block, x: block.relu(block.bn(y := block.conv(x))) + y.mean(),
        lambda block, x: (kept.append(y := block.conv(x)), block.relu(block.bn(y)))[1],
        lambda block, x: block.bn(y := block.conv(x)) + block.relu(input=y),
    ],
    ids=["the convolution alone", "two ways", "one more reader", "an output that is kept", "named arguments"],
)
def test_what_goes_round_a_parts_forward_is_seen(around):
    model = Untraceable(around)
    with torch.no_grad():
        want = model.eval()(X)
    found, _ = by(model)
    assert found["block.conv"] == "fastcnn.nn.Conv2d"
    torch.testing.assert_close(model(X), want)


def test_without_an_example_only_what_is_traced_is_fused():
    found, report = by(Untraceable(), example=None, verify=False)
    assert found["block.conv"] == "fastcnn.nn.Conv2d"
    assert "no example to run" in report.tracing


class PreActivation(torch.nn.Module):
    """As a DenseNet's layer: normalization and ReLU before the convolution; `act` of timm: both in one module."""

    def __init__(self, norm):
        super().__init__()
        self.stem, self.norm = torch.nn.Conv2d(3, 8, 3), norm
        self.relu, self.conv = torch.nn.ReLU() if type(norm) is torch.nn.BatchNorm2d else None, torch.nn.Conv2d(8, 8, 1)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(x)
        return x + self.conv(y if self.relu is None else self.relu(y))


def norms():
    layers = pytest.importorskip("timm.layers", reason="its normalization holds its activation")
    return {"torch": torch.nn.BatchNorm2d(8), "timm": layers.BatchNormAct2d(8)}


@pytest.mark.parametrize("kind", ["torch", "timm"])
def test_normalization_before_a_convolution(kind):
    model = PreActivation(norms()[kind]).eval()
    twin = copy.deepcopy(model)
    found, _ = by(model)
    assert found["norm"] == "batch_norm_relu"
    assert found["relu" if kind == "torch" else "norm.act"] == "part of batch_norm_relu"
    names = [row.op for row in fastcnn.explain(lambda x: model(x), tuple(X.shape)).rows]
    assert names == ["conv2d", "batch_norm_relu", "conv2d"]
    with torch.no_grad():
        torch.testing.assert_close(model(X), twin(X))
    model.train(), twin.train()
    for m in (model, twin):
        m(X).square().sum().backward()
    for a, b in zip((*model.parameters(), *model.buffers()), (*twin.parameters(), *twin.buffers())):
        torch.testing.assert_close(a, b)
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4 * float(b.grad.abs().max()))
    seen = []
    (model.relu or model.norm.act).register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(X), twin.eval()(X))
    assert len(seen) == 1
    assert type(fastcnn.revert_(model).norm) is type(twin.norm)


def test_timms_normalization_behind_a_convolution():
    layers = pytest.importorskip("timm.layers", reason="its normalization holds its activation")
    for options, chain in (
        ({}, "conv2d_bn_relu"),
        ({"apply_act": False}, "conv2d_bn_relu without ReLU"),
        ({"act_layer": torch.nn.SiLU}, "fastcnn.nn.Conv2d"),
        ({"drop_layer": torch.nn.Dropout}, "fastcnn.nn.Conv2d"),
    ):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), layers.BatchNormAct2d(8, **options)).eval()
        model[1].running_mean.normal_()
        with torch.no_grad():
            want = model(X)
        found, report = by(model)
        assert found["0"] == chain, options
        assert ("a subclass with behaviour of its own" in found["1"]) == (chain == "fastcnn.nn.Conv2d")
        assert report.error < 1e-5
        with torch.no_grad():
            torch.testing.assert_close(model(X), want, rtol=1e-4, atol=1e-5)
            stored = io.BytesIO()
            torch.save(model, stored)
            stored.seek(0)
            loaded = torch.load(stored, weights_only=False)
            assert torch.equal(loaded(X), model(X))
            assert torch.equal(fastcnn.revert_(loaded)(X), want)


class Quiet(torch.nn.BatchNorm2d):
    """A subclass with a forward of its own."""

    def forward(self, input):
        return super().forward(input) / 2


def test_subclasses_of_the_normalization_stay():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), Quiet(8), torch.nn.ReLU())
    found, _ = by(model)
    assert found["0"] == "fastcnn.nn.Conv2d"
    assert "a subclass with behaviour of its own" in found["1"]


def test_frozen_statistics_stay():
    """torchvision's FrozenBatchNorm2d, of pretrained detection models, is no BatchNorm2d."""
    frozen = pytest.importorskip("torchvision.ops", reason="the class is torchvision's").FrozenBatchNorm2d(8)
    frozen.running_mean.normal_()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), frozen, torch.nn.ReLU())
    found, report = by(model)
    assert found == {"0": "fastcnn.nn.Conv2d", "1": found["2"], "2": "fastcnn has no kernel for it"}
    assert report.error < 1e-5


def test_no_other_name_is_made_of_timm():
    with pytest.raises(AttributeError, match="no attribute 'FusedBatchNorm3d'"):
        fastcnn._fused.FusedBatchNorm3d  # noqa: B018
