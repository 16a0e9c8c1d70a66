"""Compiles the library's programs for machines that need not be there, and counts what they do.

    python -m benchmarks.programs --target=h100 --rows=natural,trades_ancra

Rows are training steps by the name of their method, trades_ancra_parts (batch statistics by
device), pgd40 (the evaluation's attack) and AutoAttack's attacks apgd, fab_t and square (a hundred
steps, five thousand queries) on the same network. An attack is the program of one device: each
works by itself on its own rows. Nothing is run or timed: the numbers are those of the program that
XLA makes. The compiler for GPUs is in the package jax-cuda12-pjrt of JAX's version, that for TPUs
in libtpu; neither needs to be installed as a backend of JAX. Rows are written to
results/programs/<target>.json, over those of their name.
"""

import argparse
import importlib.metadata
import json
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ancra_jax import attacks, data, models
from ancra_jax import config as config_lib
from ancra_jax.errors import UsageError
from ancra_jax.ops.files import write_atomically
from ancra_jax.ops.target import traced_for
from ancra_jax.run import sharding
from benchmarks import flops, hlo, targets
from benchmarks.jax_workloads import IMAGE_SHAPE, NUM_CLASSES, step_parts
from configs import cifar10

STEPS = ("natural", "pgd_at", "trades", "trades_ancra", "mart_ancra", "trades_awp")
PARTS = "trades_ancra_parts"
ATTACKS = ("pgd40", "apgd", "fab_t", "square")
EXAMPLES = 50_000  # of the data set on the devices
GB, MIB = 1e9, 2**20
RESULTS = Path(__file__).parents[1] / "results" / "programs"


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = parse(argv)
    try:
        devices = targets.devices(arguments.target, arguments.plugin)
        print(HEADER)
        for row in arguments.rows:
            facts = examine(row, arguments, devices)
            print_row(row, facts)
            keep(arguments, row, facts)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written to {path_of(arguments)}")
    return 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads and checks the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.programs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", choices=list(targets.TARGETS), default="h100")
    parser.add_argument("--rows", default=",".join((*STEPS, *ATTACKS)), help="which, with commas")
    parser.add_argument("--width", type=int, default=64, help="channels of ResNet-18's stem")
    parser.add_argument("--batch_size", type=int, default=128, help="images of a device")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--plugin", help="the compiler's file, xla_cuda_plugin.so or libtpu.so")
    parser.add_argument("--output", type=Path, help="JSON file (default: in results/programs/)")
    parser.add_argument("--text", type=Path, help="folder for the compiled programs' text")
    arguments = parser.parse_args(argv)
    arguments.rows = arguments.rows.split(",")
    known = (*STEPS, PARTS, *ATTACKS)
    if unknown := [row for row in arguments.rows if row not in known]:
        parser.error(f"--rows: unknown {unknown[0]!r}; allowed are {', '.join(known)}")
    for name in ("width", "batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}={getattr(arguments, name)}: must be at least 1")
    return arguments


def examine(row: str, arguments: argparse.Namespace, devices: list[Any]) -> dict[str, Any]:
    """Compiles a program and returns what is in it."""
    target = targets.TARGETS[arguments.target]
    devices = devices[:1] if row in ATTACKS else devices
    images = arguments.batch_size * len(devices)
    with traced_for(target.platform):
        function, operands, one_image = program(row, configuration(row, arguments, images), devices)
        try:
            operations = flops.count(function, *operands)
        except ValueError:  # a loop whose length is known at run time only
            operations = None
        # Candidates for a kernel cannot be timed without the device.
        options = {"xla_gpu_autotune_level": "0"} if target.platform == "gpu" else None
        compiled = function.trace(*operands).lower().compile(compiler_options=options)
    text = compiled.as_text()
    if arguments.text:
        arguments.text.mkdir(parents=True, exist_ok=True)
        (arguments.text / f"{arguments.target}-{row}.txt").write_text(text)
    settings = {name: getattr(arguments, name) for name in ("width", "batch_size", "dtype")}
    forwards = operations and operations / one_image / images
    return (
        {"settings": settings, "devices": len(devices)}
        | {"flops": operations, "forwards": forwards and round(forwards, 2)}
        | counts(hlo.parse(text), target, arguments.dtype)
        | memory(compiled.memory_analysis(), arguments.batch_size)
        | {"versions": versions()}
    )


def configuration(row: str, arguments: argparse.Namespace, images: int) -> config_lib.schema.Config:
    """The configuration of a row."""
    config = cifar10.get_config(row if row in STEPS else "trades_ancra")
    if row == PARTS:
        config.model.batch_norm_parts = images // arguments.batch_size
    config.model.width = arguments.width
    config.model.dtype = arguments.dtype
    config.batch_size = images
    return config_lib.from_mapping(config)


def program(row: str, config: config_lib.schema.Config, devices: list[Any]):
    """A row's jitted function, its operands' shapes, and the FLOPs of one image's forward pass."""
    mesh = sharding.create_mesh(devices)
    everywhere, split_up = sharding.replicated(mesh), sharding.batch_sharded(mesh)
    parts = step_parts(config, mesh)
    shape = lambda sides, dtype, where: jax.ShapeDtypeStruct(  # noqa: E731
        sides, dtype, sharding=where
    )
    variables = jax.eval_shape(parts.network.init, jax.random.key(0), jnp.zeros((1, *IMAGE_SHAPE)))
    one = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), jnp.float32)
    one_image = flops.count(parts.network.apply, variables, one)
    if row not in ATTACKS:
        split = data.DeviceSplit(
            shape((EXAMPLES, *IMAGE_SHAPE), jnp.uint8, everywhere),
            shape((EXAMPLES,), jnp.int32, everywhere),
        )
        state = sharding.abstract_on(jax.eval_shape(parts.init, split.labels), everywhere)
        order = shape((EXAMPLES,), jnp.int32, everywhere)
        return parts.step, (state, split, order), one_image
    images = shape((config.batch_size, *IMAGE_SHAPE), jnp.float32, split_up)
    labels = shape((config.batch_size,), jnp.int32, split_up)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.batch_size))
    keys = shape(keys.shape, keys.dtype, split_up)
    attack = jax.jit(partial(_ATTACKS[row], parts.network, config.evaluation))
    variables = sharding.abstract_on(variables, everywhere)
    return attack, (variables, images, labels, keys), one_image


def _pgd(network, settings, variables, images, labels, keys):
    model = models.BoundNetwork(network, variables)
    ball = attacks.threat_model(settings.norm, settings.epsilon)
    return attacks.ascend(
        attacks.objectives.cross_entropy(model, labels),
        ball.random_start(keys, images),
        images,
        ball,
        step_size=settings.step_size,
        num_steps=settings.num_steps,
        loop="compiled",
    )


def _of_autoattack(attack, settings, network, evaluation, variables, images, labels, keys):
    model = models.BoundNetwork(network, variables)
    ball = attacks.threat_model(evaluation.norm, evaluation.epsilon)
    if attack is attacks.fab:
        settings = settings | {"targets": (labels + 1) % NUM_CLASSES}
    key = jax.random.wrap_key_data(jax.random.key_data(keys)[0])
    return attack(model, images, labels, ball, key=key, loop="compiled", **settings)


_ATTACKS = {
    "pgd40": _pgd,
    "apgd": partial(_of_autoattack, attacks.apgd, {"num_steps": 100}),
    "fab_t": partial(_of_autoattack, attacks.fab, {"num_steps": 100}),
    "square": partial(_of_autoattack, attacks.square, {"num_queries": 5000}),
}


def counts(module: hlo.Module, target: targets.Target, dtype: str) -> dict[str, Any]:
    """What a run of a compiled program launches, moves and sends, on one device."""
    found = list(hlo.kernels(module))
    total = of_loops = 0
    floor, kinds, bytes_by_kind = 0.0, Counter(), Counter()
    for kernel in found:
        one = hlo.moved(kernel, module)
        total += kernel.times * one
        of_loops += kernel.times * one * (kernel.times > 1)
        kind = hlo.kind(kernel, module)
        kinds[kind] += kernel.times
        bytes_by_kind[kind] += kernel.times * one
        if target.bandwidth:
            computing = hlo.operations(kernel, module) / target.peak[dtype]
            floor += kernel.times * max(one / target.bandwidth, computing)
    launched = sum(kinds.values())
    result = {
        "kernels": launched,
        "kernels_by_kind": dict(kinds.most_common()),
        "bytes": total,
        "bytes_in_loops": of_loops,
        "bytes_by_kind": dict(bytes_by_kind.most_common()),
        "convolutions": dict(hlo.convolutions(module)),
        "collectives": hlo.collectives(found),
        "oddities": hlo.oddities(module),
    }
    if target.bandwidth:
        result |= {
            "floor_ms": round(1e3 * floor, 2),
            "floor_ms_with_launches": round(1e3 * (floor + launched * target.launch), 2),
            "floor_of": {
                "bytes/s": target.bandwidth,
                "FLOP/s": target.peak[dtype],
                "launch_seconds": target.launch,
                "source": target.source,
            },
        }
    return result


def memory(statistics: Any, batch_size: int) -> dict[str, Any]:
    """What a device holds while the program runs, and the batches for which there is room.

    Temporaries grow with the batch, the rest does not.
    """
    temporaries, held = statistics.temp_size_in_bytes, statistics.argument_size_in_bytes
    held += statistics.output_size_in_bytes - statistics.alias_size_in_bytes
    fits = {
        f"{room} GB": int((room * GB - held) * batch_size / temporaries) // 8 * 8
        for room in (16, 80)
    }
    return {
        "temporaries": temporaries,
        "arguments": statistics.argument_size_in_bytes,
        "donated": statistics.alias_size_in_bytes,
        "batch_that_fits": fits,
    }


def versions() -> dict[str, str]:
    """Those of what decides about the program, as far as they are known."""
    found = {}
    for package in ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


HEADER = (
    f"{'program':<14}{'forwards':>9}{'TFLOP':>8}{'GB':>7}{'kernels':>9}  {'convolutions':<24}"
    f"{'MiB: temporary':>15}{'held':>6}{'donated':>9}{'floor ms':>10}{'+launch':>9}"
    f"{'batch in 16':>13}{'80 GB':>8}  collectives (how many, MB)"
)


def print_row(row: str, facts: dict[str, Any]) -> None:
    """Prints a program's line."""
    convolutions = ", ".join(f"{n} {dtype}" for dtype, n in facts["convolutions"].items())
    sent: Counter[str] = Counter()
    bytes_sent: Counter[str] = Counter()
    for group in facts["collectives"]:
        sent[group["kind"]] += group["times"]
        bytes_sent[group["kind"]] += group["times"] * group["bytes"]
    collectives = ", ".join(f"{k} {n} ({bytes_sent[k] / 1e6:.1f})" for k, n in sent.items())
    number = lambda value, form: "-" if value is None else format(value, form)  # noqa: E731
    fits = facts["batch_that_fits"]
    operations = facts["flops"] and facts["flops"] / 1e12
    print(
        f"{row:<14}{number(facts['forwards'], '.2f'):>9}{number(operations, '.3f'):>8}"
        f"{facts['bytes'] / GB:>7.2f}{facts['kernels']:>9}  {convolutions:<24}"
        f"{facts['temporaries'] / MIB:>15.0f}{facts['arguments'] / MIB:>6.0f}"
        f"{facts['donated'] / MIB:>9.0f}{number(facts.get('floor_ms'), '.2f'):>10}"
        f"{number(facts.get('floor_ms_with_launches'), '.2f'):>9}"
        f"{fits['16 GB']:>13}{fits['80 GB']:>8}  {collectives or 'none'}",
        flush=True,
    )
    for oddity in facts["oddities"]:
        print(f"  {oddity}")


def path_of(arguments: argparse.Namespace) -> Path:
    """The file that the rows are kept in."""
    return arguments.output or RESULTS / f"{arguments.target}.json"


def keep(arguments: argparse.Namespace, row: str, facts: dict[str, Any]) -> None:
    """Adds a row to the file; over the row of that name, if there is one.

    Raises:
      UsageError: the file cannot be read or written.
    """
    path = path_of(arguments)
    try:
        rows = json.loads(path.read_text())["rows"] if path.exists() else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        report = {"schema": 1, "target": arguments.target, "rows": rows | {row: facts}}
        write_atomically(path, json.dumps(report, indent=1) + "\n")
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: cannot be read and written again: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
