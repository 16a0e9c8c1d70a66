"""Times the training step: compilation, one step, and the host's part of it.

    python benchmarks/train_step.py --methods=trades,trades_ancra --width=64

Runs on whatever JAX finds, on random CIFAR-sized images; prints a table and, with --output=FILE,
writes JSON with provenance. ``--loop_trap`` adds the gradient loop with JAX's own rule for
convolutions, which on CPU shows what the library's rule saves (jax issue 12868).
"""

import argparse
import json
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from ancra_jax import attacks, data, methods, models, optim, sharding
from ancra_jax import config as config_lib
from ancra_jax.models.layers import gradient_rule
from ancra_jax.results import provenance
from ancra_jax.train_state import create_train_state, make_train_step
from configs import cifar10

IMAGE_SHAPE = (32, 32, 3)


def time_method(name, width, batch_size, steps):
    """Compiles and runs the step of one method."""
    values = cifar10.get_config(name)
    values.model.width = width
    config = config_lib.from_mapping(values)
    model = models.create(
        config.model.name,
        num_classes=10,
        width=width,
        reverse_attention=config.model.reverse_attention,
        dtype=jnp.dtype(config.model.dtype),
    )
    mesh = sharding.create_mesh()
    optimizer = optim.create(config.optimizer, config.epochs, steps_per_epoch=steps + 2)
    method = methods.create(config)
    rng = np.random.default_rng(0)
    examples = batch_size * (steps + 2)
    split = data.put_on_device(
        data.Split(
            rng.integers(0, 256, (examples, *IMAGE_SHAPE), np.uint8),
            rng.integers(0, 10, examples).astype(np.int32),
        ),
        sharding.replicated(mesh),
    )
    state = jax.jit(
        lambda: create_train_state(
            model.init,
            optimizer,
            IMAGE_SHAPE,
            jax.random.key(0),
            method.init_state(examples, 10),
        ),
        out_shardings=sharding.replicated(mesh),
    )()
    step = make_train_step(
        model.apply,
        method,
        optimizer,
        batch_size=batch_size,
        steps_per_epoch=steps + 2,
        augmentation=data.Augmentation(crop_padding=4, horizontal_flip=True),
        key=jax.random.key(1),
        mesh=mesh,
    )
    order = jax.device_put(jnp.arange(examples, dtype=jnp.int32), sharding.replicated(mesh))
    started = time.perf_counter()
    compiled = step.lower(state, split, order).compile()
    compile_seconds = time.perf_counter() - started
    state, _ = compiled(state, split, order)
    jax.block_until_ready(state)
    seconds, host = [], []
    for _ in range(steps):
        started = time.perf_counter()
        state, metrics = compiled(state, split, order)
        host.append(time.perf_counter() - started)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    return {
        "method": name,
        "compile_seconds": compile_seconds,
        "step_seconds": median,
        "images_per_second": batch_size / median,
        "host_share": statistics.median(host) / median,
    }


def time_input_gradients(width, batch_size, rule, steps=5):
    """A compiled gradient loop over the network, with one rule for the gradient of convolutions.

    Not the library's attack, which replaces the convolutions of any model.
    """
    model = models.create("resnet18", num_classes=10, width=width)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *IMAGE_SHAPE)))
    images = jax.random.uniform(jax.random.key(1), (batch_size, *IMAGE_SHAPE))
    labels = jnp.zeros(batch_size, jnp.int32)

    def loss(images, variables):
        logits = model.apply(variables, images).logits
        return attacks.objectives.cross_entropy_term(logits, labels).sum()

    def step(_, carry):
        x, variables = carry
        return x + 2 / 255 * jnp.sign(jax.grad(loss)(x, variables)), variables

    @jax.jit
    def attack(variables, images):
        return jax.lax.fori_loop(0, steps, step, (images, variables))[0]

    with gradient_rule(rule):
        attack(variables, images).block_until_ready()
        started = time.perf_counter()
        attack(variables, images).block_until_ready()
    return (time.perf_counter() - started) / steps / batch_size


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="natural,trades,trades_ancra")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--loop_trap", action="store_true")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are to be measured
    rows = []
    print(f"{'method':<16}{'compile s':>10}{'step s':>10}{'images/s':>10}{'host share':>12}")
    for name in arguments.methods.split(","):
        row = time_method(name, arguments.width, arguments.batch_size, arguments.steps)
        rows.append(row)
        print(
            f"{name:<16}{row['compile_seconds']:>10.1f}{row['step_seconds']:>10.3f}"
            f"{row['images_per_second']:>10.1f}{row['host_share']:>12.2%}",
            flush=True,
        )
    results = {"settings": vars(arguments), "rows": rows}
    if arguments.loop_trap:
        trap = {
            rule: time_input_gradients(arguments.width, min(arguments.batch_size, 16), rule)
            for rule in ("forward", "stock")
        }
        results["input_gradient_seconds_per_image"] = trap
        print(
            f"input gradient in a compiled loop, ms/image: {1e3 * trap['forward']:.1f} with the "
            f"library's rule for convolutions, {1e3 * trap['stock']:.1f} with JAX's own"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results |= {"peak_host_memory_mib": peak, **provenance()}
    print(f"peak host memory {peak:.0f} MiB on {results['device']}")
    if arguments.output:
        with open(arguments.output, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
