"""convert_ and revert_: what is replaced, what is left and why, that values stay and everything comes back."""

import copy

import pytest
import torch
from torch.nn.utils import parametrizations

import fastcnn


class Small(torch.nn.Module):
    """A residual network in miniature: chains with and without ReLU, and layers that stay."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8)
        self.relu = torch.nn.ReLU(inplace=True)
        self.lrn, self.pool = torch.nn.LocalResponseNorm(5), torch.nn.MaxPool2d(3, 2)
        self.conv2, self.bn2 = torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.BatchNorm2d(8)
        self.up, self.gelu = torch.nn.ConvTranspose2d(8, 8, 2, 2), torch.nn.GELU()
        self.head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5))

    def forward(self, x):
        x = self.pool(self.lrn(self.relu(self.bn1(self.conv1(x)))))
        return self.head(self.gelu(self.up(self.bn2(self.conv2(x)) + x)))


def randomized(model):
    """Statistics and factors that a wrong fold would be seen in."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    return model


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def kinds(report):
    return {m.name: m.by or m.reason for m in report.modules}


def test_every_module_is_reported():
    model = randomized(Small())
    report = fastcnn.convert_(model, example=X)
    assert kinds(report) == {
        "conv1": "conv2d_bn_relu", "bn1": "part of conv2d_bn_relu", "relu": "part of conv2d_bn_relu",
        "lrn": "fastcnn.nn.LocalResponseNorm", "pool": "fastcnn.nn.MaxPool2d",
        "conv2": "conv2d_bn_relu without ReLU", "bn2": "part of conv2d_bn_relu without ReLU",
        "up": "fastcnn.nn.ConvTranspose2d", "gelu": "fastcnn has no kernel for it",
        "head.0": "fastcnn.nn.AdaptiveAvgPool2d", "head.1": "fastcnn has no kernel for it",
        "head.2": "fastcnn has no kernel for it",
    }  # fmt: skip
    assert report.replaced == 9
    assert report.error < 1e-4
    assert "9 of 12 modules replaced" in str(report)
    assert report.to_dict()["modules"][0]["replaced"]


@pytest.mark.parametrize("fuse", [True, False])
def test_values_gradients_and_statistics_stay_and_revert_is_exact(fuse):
    model = randomized(Small())
    twin = copy.deepcopy(model)
    types = [type(m) for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        wanted = model.eval()(X)
    fastcnn.convert_(model, fuse=fuse, example=X)
    assert model.state_dict().keys() == state.keys()
    with torch.no_grad():
        torch.testing.assert_close(model(X), wanted, rtol=1e-4, atol=1e-5)
    model.train(), twin.train()
    for m in (model, twin):
        m(X).square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3 * max(1, b.grad.abs().max()), msg=name)
    for a, b in zip(model.buffers(), twin.buffers()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert fastcnn.revert_(model) is model
    assert [type(m) for m in model.modules()] == types
    assert not any("fastcnn" in key for m in model.modules() for key in vars(m))
    model.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(model.eval()(X), wanted)


def test_hooks_are_kept_and_called():
    model = randomized(Small()).eval()
    seen = []
    model.bn1.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        wanted = model(X)
    before = seen.pop()
    report = fastcnn.convert_(model, example=X)
    assert kinds(report)["conv1"] == "fastcnn.nn.Conv2d"  # its chain has a hook
    seen.clear()
    model.bn2.register_forward_hook(lambda module, args, out: seen.append(out))  # and one that comes later
    with torch.no_grad():
        torch.testing.assert_close(model(X), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0], before, rtol=1e-4, atol=1e-5)
    assert len(seen) == 2


def test_a_converted_model_can_be_copied_and_the_copy_reverted():
    model = randomized(Small()).eval()
    fastcnn.convert_(model, example=X)
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(model.bn1.weight)
    with torch.no_grad():
        assert not torch.equal(other(X), model(X))  # the copy's chain holds the copy's modules
        fused = other(X)
        torch.testing.assert_close(fastcnn.revert_(other)(X), fused, rtol=1e-4, atol=1e-5)


class Odd(torch.nn.Conv2d):
    """A subclass with a forward of its own."""

    def forward(self, input):
        return super().forward(input) * 2


def test_what_is_left_alone_and_why():
    shared = torch.nn.Conv2d(4, 4, 1)
    quantized = torch.nn.Conv2d(4, 4, 1)
    quantized.qconfig = object()
    model = torch.nn.Sequential(
        Odd(3, 4, 3), parametrizations.weight_norm(torch.nn.Conv2d(4, 4, 1)), quantized, shared,
        torch.nn.BatchNorm2d(4), shared, fastcnn.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 4, 1),
    )  # fmt: skip
    report = fastcnn.convert_(model, filter_fn=lambda name, module: name != "7", example=X)
    found = kinds(report)
    assert "a subclass with behaviour of its own" in found["0"]
    assert found["1"] == "parametrized" if "1" in found else True
    assert found["2"] == "prepared for quantization"
    assert found["3"] == "fastcnn.nn.Conv2d"
    assert model[3] is model[5] is shared
    assert found["4"] == "fastcnn has no kernel for it"  # its convolution is called twice
    assert found["6"] == "fastcnn's already"
    assert found["7"] == "filter_fn"


def test_a_model_that_cannot_be_traced_is_converted_by_module():
    class Branching(Small):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    report = fastcnn.convert_(Branching(), example=X)
    assert report.tracing.startswith("not traceable")
    assert kinds(report)["conv1"] == "fastcnn.nn.Conv2d"


def test_the_check_finds_a_wrong_kernel_and_undoes_all(monkeypatch):
    model = Small()
    monkeypatch.setattr(fastcnn.nn.MaxPool2d, "forward", lambda self, x: torch.nn.functional.avg_pool2d(x, 3, 2))
    with pytest.raises(RuntimeError, match=r"outputs differ by .* undone"):
        fastcnn.convert_(model, example=X)
    assert type(model.pool) is torch.nn.MaxPool2d
    assert type(model.conv1) is torch.nn.Conv2d


def test_outputs_without_values_check_nothing():
    """A detector that finds nothing in the example."""
    model = torch.nn.Sequential(Small(), torch.nn.Threshold(1e9, 0))
    model.forward = lambda x: torch.nn.Sequential.forward(model, x)[:0]
    report = fastcnn.convert_(model, example=X)
    assert report.error is None
    assert "hold no values" in report.verification
    assert report.replaced


def test_misuse():
    model = Small()
    fastcnn.convert_(model, example=X)
    with pytest.raises(ValueError, match="not converted; call revert_ first"):
        fastcnn.convert_(model)
    report = fastcnn.convert_(torch.nn.Sequential(torch.nn.Linear(3, 3)))
    assert report.error is None
    assert "no convolution" in report.verification


TORCHVISION = [
    "alexnet",
    "vgg11_bn",
    "resnet18",
    "squeezenet1_1",
    "densenet121",
    "googlenet",
    "mobilenet_v2",
    "regnet_y_400mf",
]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_models(name):
    models = pytest.importorskip("torchvision.models")
    options = {"init_weights": False} if name == "googlenet" else {}
    model = randomized(models.get_model(name, **options)).eval()
    x = torch.randn(1, 3, 64 if name != "alexnet" else 96, 64 if name != "alexnet" else 96)
    with torch.no_grad():
        wanted = model(x)
        report = fastcnn.convert_(model, example=x)
        assert report.error < 1e-3
        assert report.replaced
        assert torch.equal(fastcnn.revert_(model)(x), wanted)
