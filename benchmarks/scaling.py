"""What a step should take on devices that were not measured: `python -m benchmarks.scaling`.

All of it is arithmetic, none of it is measured but the counts of the step.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peaks import H100, PEAKS, V4, V5E, Chip

IMAGES, EPOCHS = 49_000, 120  # of CIFAR-10, 1,000 being held out; the paper's


def counted(target: str) -> dict[str, Any]:
    """What `benchmarks.programs` counted of a TRADES-ANCRA step on one device of a target."""
    path = Path(__file__).parents[1] / f"results/programs/{target}.json"
    return json.loads(path.read_text())["rows"]["trades_ancra"]


ONE, EIGHT = counted("h100"), counted("h100x8")
# Bytes that the devices add up in a step: the gradient, in float32, and little else.
REDUCED = sum(group["bytes"] * group["times"] for group in EIGHT["collectives"])

# A v4-8 has 8 cores, which are 4 chips; the number of a v5e slice is of chips.
SYSTEMS = (
    ("1 H100", H100, 1, 128),
    ("8 H100", H100, 8, 128),
    ("v4-8", V4, 4, 128),
    ("v5e-16", V5E, 16, 128),
    ("v5e-256", V5E, 256, 16),
)


class Estimate(NamedTuple):
    """What follows for a system."""

    compute: float  # seconds a step
    memory: float  # seconds a step
    reduce: float  # seconds a step
    images_per_second: float
    minutes: float  # of a training
    resident: float  # bytes on a chip


def estimate(chip: Chip, chips: int, batch: int) -> Estimate:
    """Return the arithmetic of docs/scaling.md for so many chips with a batch on each."""
    share = batch / ONE["settings"]["batch_size"]
    compute = ONE["flops"] * share / PEAKS[chip.name]["bfloat16"]
    memory = ONE["bytes"] * share / chip.bandwidth
    reduce = 2 * (chips - 1) / chips * REDUCED / chip.link
    step = compute + memory + reduce
    steps = EPOCHS * (IMAGES // (chips * batch))
    resident = ONE["arguments"] + ONE["temporaries"] * share
    return Estimate(compute, memory, reduce, chips * batch / step, steps * step / 60, resident)


def table() -> str:
    """Return the table of docs/scaling.md."""
    lines = [
        "| | chips × batch | compute | memory | all-reduce | images/s | 120 epochs | on a chip |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, chip, chips, batch in SYSTEMS:
        found = estimate(chip, chips, batch)
        times = " | ".join(f"{1e3 * seconds:.1f} ms" for seconds in found[:3])
        lines.append(
            f"| {name} | {chips} × {batch} | {times} | {found.images_per_second:,.0f} "
            f"| {found.minutes:.1f} min "
            f"| {found.resident / 1e9:.1f} of {chip.memory / 1e9:.0f} GB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
