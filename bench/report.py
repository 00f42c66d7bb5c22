"""Turns one or two result files of `pytest bench --benchmark-only` into one HTML page, and a summary in the terminal.

python bench/report.py RESULTS.json [BASELINE.json] [-o report.html] [--targets]
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

Record = dict


@dataclass(frozen=True)
class Run:
    """One result file: its measurements by identity, and what they were taken on."""

    label: str
    records: dict[tuple, Record]
    environment: dict
    date: str


def identity(record: Record) -> tuple:
    return tuple(record[key] for key in ("group", "layer", "batch", "layout", "dtype", "direction"))


def load(path: Path) -> Run:
    data = json.loads(path.read_text())
    records = [b["extra_info"] for b in data["benchmarks"] if "ratio" in b["extra_info"]]
    if not records:
        raise SystemExit(f"{path}: holds no measurement against stock PyTorch")
    return Run(path.stem, {identity(r): r for r in records}, data["fastcnn"], data["datetime"][:19].replace("T", " "))


def is_slower(ratio: float) -> bool:
    """Slower than stock in the two decimals that are shown."""
    return round(ratio, 2) < 1


def geometric_mean(ratios: Iterable[float], weights: Iterable[float] | None = None) -> float:
    ratios = list(ratios)
    weights = [1.0] * len(ratios) if weights is None else list(weights)
    return math.exp(sum(w * math.log(r) for r, w in zip(ratios, weights)) / sum(weights))


@dataclass(frozen=True)
class Group:
    """The rows of one op and direction."""

    name: str
    records: list[Record]
    mean: float = field(init=False)
    worst: Record = field(init=False)
    losses: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "mean", geometric_mean(r["ratio"] for r in self.records))
        object.__setattr__(self, "worst", min(self.records, key=lambda r: r["ratio"]))
        object.__setattr__(self, "losses", sum(is_slower(r["ratio"]) for r in self.records))


def group_name(record: Record) -> str:
    half = f", {record['dtype']}" if record["dtype"] != "float32" else ""
    return f"{record['group']}, {record['direction']}{half}"


def groups(records: Iterable[Record]) -> list[Group]:
    """In the order of the records."""
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(group_name(record), []).append(record)
    return [Group(name, records) for name, records in by_name.items()]


@dataclass(frozen=True)
class Target:
    """A speed that the project has set itself: the least (or geometric mean) ratio over some rows must reach `need`."""

    name: str
    need: float
    wanted: Callable[[Record], bool]
    statistic: str = "least"
    overhead: bool = False  # the limit is on fastcnn's time as a multiple of stock's

    def judge(self, run: Run) -> "Verdict | None":
        """None where the file holds none of the rows."""
        rows = [r for r in run.records.values() if self.wanted(r)]
        if not rows:
            return None
        ratios = [r["ratio"] for r in rows]
        # A network's geometric mean counts each layer as often as the network has it.
        mean = geometric_mean(ratios, [r["geometry"].get("count", 1) for r in rows])
        value = mean if self.statistic == "geometric mean" else min(ratios)
        if self.overhead:
            return Verdict(1 / value, 1 / value <= self.need, len(rows), 1 / mean, 1 / min(ratios))
        return Verdict(value, value >= self.need, len(rows), mean, min(ratios))


@dataclass(frozen=True)
class Verdict:
    value: float
    met: bool
    rows: int
    mean: float
    worst: float


def _is(op: str, layers: tuple[str, ...] = ("",), **fixed: object) -> Callable[[Record], bool]:
    """Rows of an op whose layer starts with one of `layers` and whose fields equal `fixed` (forward, float32)."""
    fixed = {"direction": "forward", "dtype": "float32", **fixed}
    return lambda r: (
        r["op"] == op and r["layer"].startswith(layers) and all(r[key] == value for key, value in fixed.items())
    )


_DENSE = _is("conv2d", ("alexnet.", "vgg16.", "resnet50."), layout="channels_last")


def _small_map(r: Record) -> bool:
    g = r["geometry"]
    return _DENSE(r) and r["batch"] == 1 and g["size"] in (7, 13) and min(g["in_channels"], g["out_channels"]) >= 256


def _four_a_group(r: Record) -> bool:
    g = r["geometry"]
    return _is("conv2d", layout="channels_last")(r) and 1 < g["groups"] == g["in_channels"] // 4


_LRN = ("alexnet.lrn1", "zfnet.lrn1")
_POOLED = lambda r: (r["layer"], r["batch"]) in (("alexnet.pool1", 1), ("googlenet.pool2", 16))
TARGETS = (
    Target("LRN forward, 16x96x55x55", 20.0, _is("local_response_norm", _LRN, batch=16)),
    Target("LRN backward, 16x96x55x55", 15.0, _is("local_response_norm", _LRN, batch=16, direction="backward")),
    Target(
        "3x3 stride 2 max pool, NCHW",
        10.0,
        lambda r: _is("max_pool2d", layout="contiguous")(r) and _POOLED(r),
    ),
    Target(
        "3x3 stride 2 max pool, channels_last, 1x96x55x55",
        4.0,
        _is("max_pool2d", ("alexnet.pool1",), layout="channels_last", batch=1),
    ),
    Target(
        "3x3 stride 2 max pool, channels_last, 16x192x56x56",
        1.4,
        _is("max_pool2d", ("googlenet.pool2",), layout="channels_last", batch=16),
    ),
    Target("dense convolution of three networks, batch 1 and 16", 1.05, _DENSE, "geometric mean"),
    Target("dense convolution of three networks, worst layer", 0.85, _DENSE),
    Target("dense convolution, 7x7 and 13x13 maps, 256+ channels, batch 1", 1.4, _small_map),
    Target("3x3 with 4 channels per group", 2.0, _four_a_group),
    Target("depthwise 3x3, batch 1", 1.3, _is("conv2d", ("mobilenet.",), layout="channels_last", batch=1)),
    Target("float16 convolution", 10.0, _is("conv2d", dtype="float16"), "geometric mean"),
    Target(
        "weight gradient of the 1x1 and 3x3 layers of ResNet-50",
        1.1,
        _is("conv2d", ("resnet50.",), direction="weight_gradient"),
        "geometric mean",
    ),
    Target("alexnet inference, batch 1", 1.4, _is("network", ("alexnet",), layer="alexnet", batch=1)),
    Target("alexnet inference, batch 16", 2.0, _is("network", ("alexnet",), layer="alexnet", batch=16)),
    Target("nn.Conv2d call on 1x1x8x8, no_grad", 1.5, _is("call overhead", direction="no_grad"), overhead=True),
    Target(
        "nn.Conv2d call on 1x1x8x8, with gradients",
        2.0,
        lambda r: r["op"] == "call overhead" and r["direction"] != "no_grad",
        overhead=True,
    ),
)


def group_lines(records: Iterable[Record]) -> list[str]:
    """The groups as a table: geometric mean and least ratio, how many rows are slower than stock, and the worst one."""
    lines = [f"{'group':44} {'rows':>4} {'mean':>7} {'least':>7}  slower  worst row"]
    for group in groups(records):
        worst, counts = group.worst, f"{group.mean:6.2f}x {group.worst['ratio']:6.2f}x  {group.losses:6}"
        row = f"{worst['layer']} b{worst['batch']} {worst['layout']}"
        lines.append(f"{group.name:44} {len(group.records):4} {counts}  {row}")
    return lines


def print_groups(runs: list[Run]) -> None:
    for run in runs:
        e = run.environment
        print(f"\n{run.label} ({run.date}): {e['cpu']}, {e['threads']} threads, isa {e['isa']}, torch {e['torch']}")
        print("\n".join(group_lines(run.records.values())))


def print_targets(runs: list[Run]) -> None:
    for run in runs:
        smoke = ", a smoke run: few rows, 3 rounds, no verdict counts" if run.environment["smoke"] else ""
        print(f"\ntargets, {run.label} (isa {run.environment['isa']}){smoke}")
        print(f"{'target':64} {'need':>8} {'measured':>9} {'':7} {'rows':>4} {'mean':>7} {'worst':>7}")
        for target in TARGETS:
            verdict, limit = target.judge(run), f"{'<=' if target.overhead else '>='}{target.need:g}x"
            if verdict is None:
                print(f"{target.name:64} {limit:>8} {'not run':>9}")
                continue
            print(
                f"{target.name:64} {limit:>8} {verdict.value:8.2f}x {'met' if verdict.met else 'MISSED':7} "
                f"{verdict.rows:4} {verdict.mean:6.2f}x {verdict.worst:6.2f}x"
            )


class Axis:
    """Ratios on a logarithmic axis, in pixels: 1 is equal speed, ticks are powers of two, eight steps at most."""

    width = 320.0

    def __init__(self, ratios: Iterable[float]):
        exponents = [math.log2(r) for r in ratios]
        lowest, highest = min(-1, math.floor(min(exponents))), max(1, math.ceil(max(exponents)))
        step = math.ceil((highest - lowest) / 8)
        self.low, self.high = step * math.floor(lowest / step), step * math.ceil(highest / step)
        self.ticks = [2.0**e for e in range(self.low, self.high + 1, step)]

    def __call__(self, ratio: float) -> float:
        place = (math.log2(ratio) - self.low) / (self.high - self.low)
        return round(self.width * min(1.0, max(0.0, place)), 1)

    def bar(self, ratio: float) -> tuple[float, float]:
        """Left edge and width of the bar from 1 to the ratio."""
        left, right = sorted((self(1.0), self(ratio)))
        return left, max(1.0, right - left)

    def spread(self, record: Record) -> tuple[float, float]:
        """Ends of the line from the ratio of near quartiles to that of far ones."""
        fast, stock = record["fastcnn_quartiles_s"], record["stock_quartiles_s"]
        return self(stock[0] / fast[1]), self(stock[1] / fast[0])


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def _rate(record: Record) -> str:
    if "gflops" in record:
        return f"{record['gflops']:.3g} GFLOP/s"
    return f"{record['gb_per_s']:.3g} GB/s" if "gb_per_s" in record else ""


def _of_peak(record: Record) -> str:
    return f"{100 * record['fraction_of_peak']:.0f}% of {record['peak']}" if "peak" in record else ""


def render(runs: list[Run]) -> str:
    """The page as one string: no script, no reference to another file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    of_first = groups(runs[0].records.values())
    others = {g.name: g for run in runs[1:] for g in groups(run.records.values())}
    environment.tests["slower"] = is_slower
    environment.filters.update(seconds=_seconds, rate=_rate, of_peak=_of_peak)
    return environment.get_template("report.html.jinja").render(
        runs=runs,
        groups=of_first,
        others=others,
        axes={g.name: Axis(r["ratio"] for r in g.records + others.get(g.name, g).records) for g in of_first},
        targets=[(target, [target.judge(run) for run in runs]) for target in TARGETS],
        identity=identity,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="one file, or two to compare")
    parser.add_argument("-o", "--output", type=Path, help="the page (default: beside the first file, as .html)")
    parser.add_argument("--targets", action="store_true", help="also print whether each speed target is met")
    args = parser.parse_args()
    if len(args.results) > 2:
        parser.error(f"expected one or two result files, but got {len(args.results)}")
    runs = [load(path) for path in args.results]
    print_groups(runs)
    if args.targets:
        print_targets(runs)
    output = args.output or args.results[0].with_suffix(".html")
    output.write_text(render(runs), encoding="utf-8")
    print(f"\n{output}")


if __name__ == "__main__":
    main()
