"""What convert_ makes of other people's models: all of torchvision that have a Conv2d, and over a hundred of timm.

    python -m tests.conversion_table > docs/conversion.md

Each model gets random weights and random statistics of its batch normalizations, is converted, compared on an example
and reverted; a model whose outputs or classes do not come back to the bit raises AssertionError.
"""

import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.utils import _pytree as pytree

import fastcnn

TOLERANCE = 1e-3  # convert_'s own; relative to an output's largest value

# Images of one size only, or maps that would vanish at the 64x64 of all others.
SIZES = {
    "alexnet": 80, "inception": 96, "quantized_inception": 96, "maxvit_t": 224, "ssd300": 300, "ssdlite320": 320,
    "vit": 224, "raft": 128,
}  # fmt: skip

# Its random weights multiply a rounding error by 1e4: in float64 the difference is below 1e-12.
ILL_CONDITIONED = "timm/efficientnetv2_rw_t"

# Video models that convolve over time, too.
WITHOUT_CONV2D = {
    "mc3_18", "mvit_v1_b", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_b", "swin3d_s", "swin3d_t",
}  # fmt: skip

TIMM = [
    "bat_resnext26ts", "beit_base_patch16_224", "botnet26t_256", "cait_xxs24_224", "coat_lite_tiny",
    "coatnet_nano_rw_224", "convformer_s18", "convit_tiny", "convmixer_768_32", "convnext_atto",
    "convnextv2_atto", "cpubone_nano", "crossvit_9_240", "cs3darknet_s", "cs3sedarknet_l", "cspdarknet53",
    "cspnext_tiny", "cspresnet50", "csatv2", "darknet53", "davit_tiny", "deit_tiny_patch16_224", "densenet121",
    "densenetblur121d", "dla34", "dla60_res2net", "dpn68", "dpn68b", "ecaresnet26t", "eca_nfnet_l0",
    "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "efficientnet_b0", "efficientnet_es",
    "efficientnet_lite0", "efficientnetv2_rw_t", "efficientvim_m1", "efficientvit_b0", "efficientvit_m0",
    "ese_vovnet19b_dw", "fasternet_t0", "fastvit_t8", "fbnetc_100", "fbnetv3_b", "focalnet_tiny_srf",
    "gcresnet33ts", "gcvit_xxtiny", "gernet_s", "ghostnet_050", "ghostnetv2_100", "halonet26t", "hardcorenas_a",
    "hgnet_tiny", "hgnetv2_b0", "hrnet_w18_small", "iformer_t", "inception_next_atto", "inception_resnet_v2",
    "inception_v3", "inception_v4", "lambda_resnet26t", "lcnet_050", "legacy_seresnet18", "legacy_xception",
    "levit_128s", "levit_conv_128s", "mambaout_femto", "mixnet_s", "mnasnet_100", "mobilenet_edgetpu_100",
    "mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv4_conv_small", "mobileone_s0",
    "mobilevit_xxs", "mobilevitv2_050", "nf_resnet26", "nextvit_small", "pit_ti_224", "poolformer_s12",
    "pvt_v2_b0", "regnetx_002", "regnety_002", "regnetz_b16", "repghostnet_050", "repvgg_a0", "repvit_m0_9",
    "res2net50_26w_4s", "resnest14d", "resnet18", "resnetv2_18", "resnetv2_50d_gn", "rexnet_100", "selecsls42",
    "seresnext26d_32x4d", "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "tf_efficientnet_b0",
    "tiny_vit_5m_224", "tresnet_m", "vgg11_bn", "visformer_tiny", "wide_resnet50_2", "xception41", "xception41p",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What convert_ did to one model."""

    model: str
    replaced: int
    chains: int
    skipped: dict[str, int]
    error: float
    tracing: str


def torchvision_models() -> list[str]:
    """All but those of three-dimensional convolutions alone."""
    from torchvision import models

    return [name for name in models.list_models() if name not in WITHOUT_CONV2D]


def all_models() -> list[str]:
    return [*torchvision_models(), *(f"timm/{name}" for name in TIMM)]


def _torchvision(name: str) -> torch.nn.Module:
    from torchvision import models

    options = {"weights": None}
    module = models.get_model_builder(name).__module__
    if ".detection" in module or ".segmentation" in module:
        options["weights_backbone"] = None
    if "faster" in name or "mask" in name or "keypoint" in name or "retina" in name or "fcos" in name:
        options |= {"min_size": 96, "max_size": 128}
    if "rcnn" in name:
        options |= {"rpn_post_nms_top_n_test": 50, "box_detections_per_img": 5}
    if ".detection" in module:
        options["box_score_thresh" if "rcnn" in name else "score_thresh"] = 0.0  # or random weights keep no box
    if name in ("googlenet", "inception_v3", "quantized_googlenet", "quantized_inception_v3"):
        options["init_weights"] = False
    return models.get_model(name, **options)


@torch.no_grad()
def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Statistics of normalizations that a wrong fold would be seen in, and no vector of equal values: zeros and tiny
    factors (a residual branch's last) would hide what they are multiplied with."""
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    for parameter in model.parameters():
        if parameter.numel() and parameter.min() == parameter.max():
            parameter.uniform_(0.5, 1.5) if parameter.max() else parameter.normal_(std=0.1)
    return model


def build(name: str) -> tuple[torch.nn.Module, tuple]:
    """A model in evaluation mode and the arguments of a call; timm's are named timm/<model>."""
    torch.manual_seed(0)
    base = name.removeprefix("timm/")
    size = next((s for prefix, s in SIZES.items() if base.startswith(prefix)), 64)
    if base != name:
        import timm

        model = timm.create_model(base, pretrained=False)
        config = model.pretrained_cfg
        if config.get("fixed_input_size") or config.get("min_input_size"):
            size = config["input_size"][-1]
        model = randomized(model).eval().to(torch.float64 if name == ILL_CONDITIONED else torch.float32)
        return model, (torch.randn(2, 3, size, size).to(next(model.parameters()).dtype),)
    model = randomized(_torchvision(name)).eval()
    if name.startswith("ssd"):  # whose own, small weights give many places the same score
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
    if ".detection" in type(model).__module__:
        # In float64: which boxes are kept hangs on comparisons that rounding would turn.
        return model.double(), ([torch.rand(3, size, size + 16).double(), torch.rand(3, size + 16, size).double()],)
    images = torch.randn(2, 3, size, size)
    return model, (images, images.roll(1, -1)) if name.startswith("raft") else (images,)


@torch.no_grad()
def outputs(model: torch.nn.Module, example: tuple) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [t.clone() for t in pytree.tree_leaves(model(*example)) if isinstance(t, torch.Tensor)]


def convert_and_revert(name: str) -> Row:
    """Converts, checks and reverts one model."""
    model, example = build(name)
    types, before = [type(m) for m in model.modules()], outputs(model, example)
    report = fastcnn.convert_(model, example=example)
    assert all(t.isfinite().all() and t.any() for t in before if t.is_floating_point()), f"{name}: a void example"
    assert report.error is not None
    assert report.error <= TOLERANCE
    assert report.replaced, f"{name}: nothing replaced"
    assert any(type(m) is not t for m, t in zip(model.modules(), types))
    fastcnn.revert_(model)
    assert [type(m) for m in model.modules()] == types, f"{name}: classes differ after revert_"
    for a, b in zip(outputs(model, example), before, strict=True):
        assert torch.equal(a, b), f"{name}: outputs differ after revert_"
    skipped = Counter(_skipped(m.type, m.reason) for m in report.modules if not m.replaced)
    chains = sum(m.by.startswith(("conv2d_bn_relu", "batch_norm_relu")) for m in report.modules)
    how = re.sub(r"\(.*\)(; |$)|: .*", lambda m: m[1] or "", report.tracing).replace(" ;", ";")
    return Row(name, report.replaced, chains, dict(skipped), report.error, how)


def _skipped(kind: str, reason: str) -> str:
    return kind if reason == "fastcnn has no kernel for it" else f"{kind} ({reason.partition(' (')[0]})"


def table(rows: list[Row]) -> str:
    """The rows as Markdown; `skipped` counts the modules by class."""
    lines = ["| model | replaced | chains | largest error | patterns | skipped |", "|---|---|---|---|---|---|"]
    for r in rows:
        skipped = ", ".join(f"{count} {what}" for what, count in sorted(r.skipped.items()))
        lines.append(f"| {r.model} | {r.replaced} | {r.chains} | {r.error:.1e} | {r.tracing} | {skipped or 'none'} |")
    return "\n".join(lines)


HEADER = """# What convert_ makes of torchvision {torchvision} and timm {timm}

    python -m tests.conversion_table > docs/conversion.md

{count} models, {of_torchvision} of torchvision (all that have a Conv2d) and {of_timm} of timm, with random weights and
random statistics. Each was converted, compared with itself before (largest error, relative to an output's largest
value; at most {tolerance:g}) and reverted, after which its outputs and classes were what they had been, to the bit.
Detection models ran in float64, because which boxes they keep hangs on comparisons that rounding turns, and so did
{ill_conditioned}, whose random weights multiply a rounding error by 1e4.

Replaced: modules that run on fastcnn's kernels, those of chains among them. Chains: convolution, batch normalization
and maybe ReLU, or normalization and ReLU, that run as one op. Patterns: whether torch.fx traced the model, or how many
parts of it. Skipped: modules that stay what they are; without a reason where fastcnn has no kernel for the class.

Of {modules} modules {replaced} were replaced, in {chains} chains. The largest error is {error:.1e} ({worst}).

"""


def page(rows: list[Row]) -> str:
    """docs/conversion.md."""
    import timm
    import torchvision

    worst = max(rows, key=lambda r: r.error)
    skipped = sum(sum(r.skipped.values()) for r in rows)
    replaced = sum(r.replaced for r in rows)
    of_timm = sum(r.model.startswith("timm/") for r in rows)
    header = HEADER.format(
        torchvision=torchvision.__version__.partition("+")[0], timm=timm.__version__, count=len(rows),
        of_timm=of_timm,
        of_torchvision=len(rows) - of_timm, tolerance=TOLERANCE, ill_conditioned=ILL_CONDITIONED,
        modules=replaced + skipped,
        replaced=replaced, chains=sum(r.chains for r in rows), error=worst.error, worst=worst.model,
    )  # fmt: skip
    return header + table(rows) + "\n"


Names = Annotated[list[str] | None, typer.Argument(help="Models, timm's as timm/<name>; by default all.")]
Kept = Annotated[Path | None, typer.Option(help="Rows are kept here, and not computed again.")]


def main(names: Names = None, rows: Kept = None) -> None:
    lines = rows.read_text().splitlines() if rows is not None and rows.exists() else []
    known = {row.model: row for row in (Row(**json.loads(line)) for line in lines)}
    names = names or all_models()
    for name in names:
        if name not in known:
            print(name, file=sys.stderr, flush=True)
            known[name] = convert_and_revert(name)
            if rows is not None:
                with rows.open("a") as kept:
                    print(json.dumps(asdict(known[name])), file=kept)
    print(page([known[name] for name in names]), end="")


if __name__ == "__main__":
    typer.run(main)
