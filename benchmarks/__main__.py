"""Measures the library's speed, against PyTorch where that is installed.

    python -m benchmarks --quick
    python -m benchmarks --width=64 --batch_size=128 --dtype=bfloat16 --rows=natural,trades_ancra

Rows are training steps by the name of their method, pgd40 (the evaluation's attack), data_pipeline
(the batches of a step alone), the attacks apgd, fab_t, square and autoattack on a network of their
own (--model, benchmarks/autoattack.py) and, on demand, gradient_loop (input gradients in a compiled
loop, for --libraries=jax,jax_stock). Libraries take turns on the same weights and draws, and their
first losses have to agree. Writes JSON with provenance.
"""

import argparse
import datetime
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from ancra_jax import config as config_lib
from ancra_jax.errors import UsageError
from ancra_jax.ops.files import write_atomically
from ancra_jax.run.workdir import provenance
from benchmarks import turns
from benchmarks.autoattack import NETWORKS
from benchmarks.peaks import table_peak
from configs import cifar10

STEPS = ("natural", "pgd_at", "trades", "trades_ancra")
ATTACKS = ("apgd", "fab_t", "square", "autoattack")
ROWS = (*STEPS, "pgd40", "data_pipeline", *ATTACKS)
ON_DEMAND = ("gradient_loop",)
PACKAGES = {"reference": "autoattack", "adv_lib": "adv_lib"}
ROWS_OF = {"reference": ATTACKS, "adv_lib": ("apgd", "fab_t")}  # all others have all rows
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
ATTACKS_DIFFER = 1e-2  # rounding decides signs of gradients, and many steps amplify that
RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"


def main() -> int:
    """The command."""
    arguments = parse()
    if arguments.cores:  # of every process that this one starts
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    try:
        report = measure(arguments)
        path = arguments.output or default_path(report)
        write_new(path, report)
    except (UsageError, turns.WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written to {path}")
    return 0


def parse() -> argparse.Namespace:
    """Reads and checks the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--width", type=int, help="channels of ResNet-18's stem (64; quick: 8)")
    parser.add_argument("--batch_size", type=int, help="images of a step (128; quick: 32)")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32")
    parser.add_argument("--rows", default=",".join(ROWS), help="which, separated by commas")
    parser.add_argument("--turns", type=int, default=3, help="of every library")
    parser.add_argument("--turn_seconds", type=float, default=1.0, help="at least, for JAX")
    parser.add_argument(
        "--cores", type=int, help="of the host (all; 1 on a busy machine, where threads wait)"
    )
    parser.add_argument(
        "--libraries", help="jax first; torch, torch_compile, reference, adv_lib, jax_stock"
    )
    parser.add_argument("--model", choices=NETWORKS, default="cnn_a", help="of the attacks")
    parser.add_argument("--attack_images", type=int, default=64, help="of the attacks, at most 69")
    parser.add_argument("--attack_steps", type=int, help="of APGD and FAB (100; quick: 10)")
    parser.add_argument("--attack_queries", type=int, help="of Square (5000; quick: 100)")
    parser.add_argument("--quick", action="store_true", help="a narrow network and small batches")
    parser.add_argument("--output", type=Path, help="JSON file (default: in results/benchmarks/)")
    arguments = parser.parse_args()
    arguments.width = arguments.width or (8 if arguments.quick else 64)
    arguments.batch_size = arguments.batch_size or (32 if arguments.quick else 128)
    arguments.attack_steps = arguments.attack_steps or (10 if arguments.quick else 100)
    arguments.attack_queries = arguments.attack_queries or (100 if arguments.quick else 5000)
    arguments.rows = arguments.rows.split(",")
    unknown = [row for row in arguments.rows if row not in (*ROWS, *ON_DEMAND)]
    if unknown:
        parser.error(
            f"--rows: unknown {unknown[0]!r}; allowed are {', '.join((*ROWS, *ON_DEMAND))}"
        )
    arguments.libraries = (arguments.libraries or default_libraries()).split(",")
    if arguments.libraries[0] != "jax":
        parser.error(f"--libraries={','.join(arguments.libraries)}: must start with jax")
    for library in {*PACKAGES} & {*arguments.libraries}:
        if importlib.util.find_spec(PACKAGES[library]) is None:
            parser.error(f"--libraries={library}: the package {PACKAGES[library]} is not installed")
    for name in ("width", "batch_size", "turns", *(n for n in vars(arguments) if "attack_" in n)):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}={getattr(arguments, name)}: must be at least 1")
    if arguments.output and arguments.output.exists():
        parser.error(f"--output={arguments.output}: exists already")
    return arguments


def default_libraries() -> str:
    """JAX, and PyTorch if it is there."""
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: nothing to compare with", file=sys.stderr)
        return "jax"
    return "jax,torch"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all rows, prints each, and returns the report."""
    rows, peak = [], None
    print(HEADER)
    for name in arguments.rows:
        row = turns.compare(
            name,
            configuration(name, arguments),
            libraries_of(name, arguments.libraries),
            turns=arguments.turns,
            turn_seconds=arguments.turn_seconds,
            tolerance=ATTACKS_DIFFER if name in ATTACKS else TOLERANCE[arguments.dtype],
        )
        rows.append(row | {"load_average": os.getloadavg()})
        peak = device_peak(rows, arguments.dtype)
        print_row(row, peak["flops"])
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    report = {
        "schema": 1,
        "settings": settings,
        "host_cores": len(os.sched_getaffinity(0)),
        "peak": peak,
        "rows": rows,
        "pipeline_share": pipeline_share(rows),
        **provenance(),
    }
    for name, share in report["pipeline_share"].items():
        print(f"the input pipeline is {share:.2%} of a step of {name}")
    return report


def libraries_of(row: str, libraries: list[str]) -> list[str]:
    """Those that have a row."""
    if row == "data_pipeline":
        return ["jax"]
    return [library for library in libraries if row in ROWS_OF.get(library, (row,))]


def configuration(row: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The configuration of a row, or an attack's settings, as plain data."""
    if row in ATTACKS:
        return {
            "model": {"dtype": "float32", "name": arguments.model, "width": arguments.width},
            "num_images": arguments.attack_images,
            "num_steps": arguments.attack_steps,
            "num_queries": arguments.attack_queries,
        }
    config = cifar10.get_config(row if row in STEPS else "natural")
    config.model.width = arguments.width
    config.model.dtype = arguments.dtype
    config.batch_size = arguments.batch_size
    return config_lib.to_mapping(config_lib.from_mapping(config))


def device_peak(rows: list[dict[str, Any]], dtype: str) -> dict[str, Any]:
    """The data sheet's FLOP/s, or what the faster library's matrix product reached so far."""
    facts = [facts for row in rows for facts in row["libraries"].values()]
    listed = table_peak(facts[0]["device_kind"], dtype)
    if listed:
        return {"flops": listed, "source": "data sheet"}
    return {"flops": max(f["matmul_flops"] for f in facts), "source": "matrix product"}


def pipeline_share(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The input pipeline's time divided by that of every training step."""
    seconds = {row["row"]: row["libraries"]["jax"]["seconds"] for row in rows}
    pipeline = seconds.get("data_pipeline")
    if pipeline is None:
        return {}
    return {name: pipeline / seconds[name] for name in STEPS if name in seconds}


HEADER = (
    f"{'row':<14}{'library':<15}{'images/s':>10}{'ms/image':>10}{'GFLOP/s':>10}{'of peak':>9}"
    f"{'peak MiB':>10}{'compile s':>11}   time / jax [range], of processor"
)


def print_row(row: dict[str, Any], peak: float | None):
    """Prints what was measured, one line for each library."""
    for library, facts in row["libraries"].items():
        seconds, images = facts["seconds"], facts["images"]
        flops = row["libraries"]["jax"]["operations"] / seconds
        ratio = ""
        if library != "jax":
            wall, processor = row["times_of_jax"][library].values()
            ratio = (
                f"{wall['median']:.2f} [{wall['smallest']:.2f}, {wall['largest']:.2f}], "
                f"{processor['median']:.2f}"
            )
            if "flags_that_differ" in row:
                ratio += f", {row['flags_that_differ'][library]} flags differ"
        print(
            f"{row['row']:<14}{library:<15}{images / seconds:>10.1f}{1e3 * seconds / images:>10.2f}"
            f"{flops / 1e9:>10.1f}{flops / peak if peak else 0:>9.1%}{facts['peak_mib']:>10.0f}"
            f"{facts['compile_seconds']:>11.1f}   {ratio}",
            flush=True,
        )


def default_path(report: dict[str, Any]) -> Path:
    """A new name for every run."""
    device = report["device"].lower().replace(" ", "_")
    time = datetime.datetime.fromisoformat(report["created"]).strftime("%Y%m%d_%H%M%S")
    return RESULTS / f"{device}_{report['settings']['dtype']}_{time}.json"


def write_new(path: Path, report: dict[str, Any]):
    """Writes the report; never over another one.

    Raises:
      UsageError: the file exists or cannot be written.
    """
    if path.exists():
        raise UsageError(f"{path}: exists already")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
