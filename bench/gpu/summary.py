"""What a GPU run prints at its end: ratios, fractions of the peaks, and predictions against measurements."""

import math
from collections import defaultdict
from collections.abc import Iterable

from rich.table import Table

from .results import Results


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def groups(rows: list[dict]) -> dict[tuple, list[dict]]:
    """Timed rows by op, precision, layout, batch and direction."""
    found = defaultdict(list)
    for row in rows:
        if "ratio" in row:
            found[tuple(row[key] for key in ("op", "precision", "layout", "batch", "direction"))].append(row)
    return dict(sorted(found.items()))


def against_best_layout(rows: list[dict]) -> dict[tuple, float]:
    """By op, layer, precision, batch and direction, the faster of stock's two layouts over the faster of fastcnn's."""
    sides = defaultdict(dict)
    for row in rows:
        if "ratio" in row:
            key = tuple(row[k] for k in ("op", "layer", "precision", "batch", "direction"))
            sides[key][row["layout"]] = row["fastcnn_s"], row["stock_s"]
    return {
        key: min(stock for _, stock in times.values()) / min(fast for fast, _ in times.values())
        for key, times in sides.items()
        if len(times) == 2
    }


def tables(rows: list[dict]) -> list[Table]:
    ratios = Table("op", "precision", "layout", "batch", "direction", "rows", "ratio", "worst", "of peak",
                   title="stock's time / fastcnn's, geometric means")  # fmt: skip
    for key, members in groups(rows).items():
        worst = min(members, key=lambda row: row["ratio"])
        peaks = [row["fraction_of_peak"] for row in members if "fraction_of_peak" in row]
        ratios.add_row(
            *map(str, key), str(len(members)), f"{geometric_mean(row['ratio'] for row in members):.2f}",
            f"{worst['ratio']:.2f} {worst['layer']}", f"{geometric_mean(peaks):.0%}" if peaks else "",
        )  # fmt: skip
    of_layer = ("layer", "op", "layout", "precision", "direction")
    predicted = Table(*of_layer, "predicted us", "measured us", "ratio", title="measured / predicted (bench/static)")
    for row in rows:
        if "predicted_s" in row:
            times = f"{1e6 * row['predicted_s']:.1f}", f"{1e6 * row['fastcnn_s']:.1f}"
            predicted.add_row(*(row[key] for key in of_layer), *times, f"{row['measured_over_predicted']:.2f}")
    best = Table("op", "precision", "batch", "direction", "rows", "ratio",
                 title="each side in its faster layout, geometric means")  # fmt: skip
    merged = defaultdict(list)
    for (op, _, precision, batch, direction), ratio in against_best_layout(rows).items():
        merged[op, precision, batch, direction].append(ratio)
    for key, values in sorted(merged.items()):
        best.add_row(*map(str, key), str(len(values)), f"{geometric_mean(values):.2f}")
    return [table for table in (ratios, best, predicted) if table.row_count]


def print_summary(results: Results) -> None:
    if results.data["dry_run"]:
        results.say("no GPU was used: the times below mean nothing")
    peaks = results.data["parts"].get("calibration", {})
    for name, rate in peaks.items():
        if isinstance(rate, float) and name != "seconds":
            unit, scale = ("GB/s", 1e9) if "copy" in name or "bytes" in name else ("TFLOP/s", 1e12)
            results.say(f"   {name}: {rate / scale:.4g} {unit}")
    for table in tables(results.data["rows"]):
        results.console.print(table)
    for name, part in results.data["parts"].items():
        for what, why in part.get("skipped", {}).items():
            results.say(f"   {name}: skipped {what}: {why}")
