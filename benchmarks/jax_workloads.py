"""What is measured, in JAX: the library's training step, PGD and input pipeline."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ancra_jax import attacks, data, methods, models
from ancra_jax import config as config_lib
from ancra_jax.cli.backend import use_a_device_per_core
from ancra_jax.config.schema import Config
from ancra_jax.interop import pytorch
from ancra_jax.methods.core import Method, random_start
from ancra_jax.models.layers import gradient_rule
from ancra_jax.ops.target import compiler_options
from ancra_jax.run import build as components
from ancra_jax.run import sharding
from ancra_jax.run.averaging import Averaging
from ancra_jax.train.step import (
    TrainState,
    create_optimizer,
    create_train_state,
    make_train_step,
)
from benchmarks import autoattack, flops
from benchmarks.measure import Workload, timed

IMAGE_SHAPE, NUM_CLASSES = (32, 32, 3), 10
STEPS_PER_EPOCH = 8


def create(row: str, config_values: Mapping[str, Any], stock: bool = False) -> Workload:
    """Builds the workload of a row and runs it once.

    Args:
      row: of ``benchmarks.autoattack``, a key of ``makers``, or anything else for the
        configuration's training step.
      config_values: a configuration, or the attack's settings, as plain data.
      stock: with JAX's own rule for convolutions.
    """
    if row in autoattack.ROWS:
        return autoattack.create(row, config_values)
    config = config_lib.from_mapping(config_values)
    makers = {
        "pgd40": evaluation_attack,
        "gradient_loop": gradient_loop,
        "data_pipeline": data_pipeline,
    }
    with gradient_rule("stock" if stock else "auto"):
        return makers.get(row, training_step)(config)


class StepParts(NamedTuple):
    """A training step, and what it was made of."""

    network: Any
    method: Method
    batches: data.BatchPlan
    step: Callable[..., Any]  # (state, split, order) -> (state, metrics), jitted
    init: Callable[[Any], TrainState]  # from the labels of all examples


def step_parts(config: Config, mesh: Mesh) -> StepParts:
    """Makes the training step of a configuration, as ``ancra_jax.train`` does."""
    model = components.create_network(config, NUM_CLASSES)
    optimizer = create_optimizer(config.optimizer, config.epochs, STEPS_PER_EPOCH)
    method = methods.create(config)
    batches = _batches(config, mesh)
    step = make_train_step(model, method, optimizer, batches, Averaging())

    def init(labels: Any) -> TrainState:
        remembered = method.init_state(labels, NUM_CLASSES)
        key = jax.random.key(config.seed)
        return create_train_state(model.init, optimizer, IMAGE_SHAPE, key, remembered, Averaging())

    return StepParts(model, method, batches, step, init)


def training_step(config: Config) -> Workload:
    """One step of training, batch and augmentation included, as ``ancra_jax.train`` takes it."""
    mesh = _mesh()
    everywhere = sharding.replicated(mesh)
    parts = step_parts(config, mesh)
    model, method, batches, step = parts.network, parts.method, parts.batches, parts.step
    split, order = _examples(config, everywhere)
    state = jax.jit(lambda: parts.init(split.labels), out_shardings=everywhere)()

    @jax.jit
    def draws(state, split, order):
        batch = batches.batch(split, order, state.step)
        _, key = batches.keys(state.step)
        predict = models.BoundNetwork(model, state.variables_of("raw")).folded()
        plan = method.prepare(predict, batch, key, jnp.zeros((), jnp.int32))
        drawn = {"images": batch.images, "labels": batch.labels}
        for name, (settings, images, _, _, keys) in plan.requests.items():
            ball = settings.threat_model
            drawn[f"start_{name}"] = random_start(settings, ball, keys, images)
        if "negatives" in plan.extras:
            drawn["negatives"] = plan.extras["negatives"].positions
        return drawn

    shared = _weights(state.variables_of("raw")) | jax.device_get(draws(state, split, order))
    operations = flops.count(step, state, split, order)
    lowered = partial(step.lower, state, split, order)
    compile_seconds, compiled = timed(lambda: lowered().compile(compiler_options()))
    state, metrics = compiled(state, split, order)

    def run():
        nonlocal state
        state, metrics = compiled(state, split, order)
        return metrics

    return Workload(
        run,
        config.batch_size,
        compile_seconds,
        float(metrics["loss"]),
        operations=operations,
        shared=shared,
    )


def evaluation_attack(config: Config) -> Workload:
    """PGD on the cross-entropy from a uniform start, as in the evaluation."""
    use_a_device_per_core()
    settings = config.evaluation
    model, variables, images, labels = _network_and_batch(config)
    mesh = _mesh()
    variables = jax.device_put(variables, sharding.replicated(mesh))
    images, labels = jax.device_put((images, labels), sharding.batch_sharded(mesh))
    threat_model = attacks.threat_model(settings.norm, settings.epsilon)
    start = threat_model.random_start(jax.random.split(jax.random.key(1), len(images)), images)
    objective = attacks.objectives.cross_entropy(models.BoundNetwork(model, variables), labels)
    attack = partial(
        attacks.ascend,
        objective,
        threat_model=threat_model,
        step_size=settings.step_size,
        num_steps=settings.num_steps,
    )
    operations = flops.count(lambda start, x: attack(start, x, loop="compiled"), start, images)
    run = partial(attack, start, images)
    first, attacked = timed(lambda: waited(run()))
    loss = float(jnp.mean(objective(attacked)))
    again, _ = timed(lambda: waited(run()))
    shared = _weights(variables) | {
        "images": np.asarray(images),
        "labels": np.asarray(labels),
        "start_adversarial": np.asarray(start),
    }
    return Workload(run, len(images), first - again, loss, operations=operations, shared=shared)


def gradient_loop(config: Config, steps: int = 5) -> Workload:
    """Input gradients in a compiled loop of our own: what `gradient_rule` is for on CPU.

    Not an attack of the library, which puts its convolution into any model.
    """
    model, variables, images, labels = _network_and_batch(config)

    def loss(x, variables):
        return attacks.objectives.cross_entropy_term(model.apply(variables, x).logits, labels).sum()

    def step(_, carry):
        x, variables = carry
        return x + 2 / 255 * jnp.sign(jax.grad(loss)(x, variables)), variables

    def ascend(x, variables):
        return jax.lax.fori_loop(0, steps, step, (x, variables))[0]

    operations = flops.count(ascend, images, variables)
    compile_seconds, compiled = timed(lambda: jax.jit(ascend).lower(images, variables).compile())
    run = partial(compiled, images, variables)
    return Workload(
        run, len(images), compile_seconds, float(loss(run(), variables)), operations=operations
    )


def data_pipeline(config: Config) -> Workload:
    """The batches of a training step, cropped and flipped, without the step."""
    split, order = _examples(config, None)
    batches = _batches(config, _mesh())

    @jax.jit
    def take(step, split, order):
        return step + 1, batches.batch(split, order, step).images

    step = jnp.zeros((), jnp.int32)
    compile_seconds, compiled = timed(lambda: take.lower(step, split, order).compile())

    def run():
        nonlocal step
        step, images = compiled(step, split, order)
        return images

    return Workload(run, config.batch_size, compile_seconds, loss=None)


def _batches(config, mesh):
    return data.BatchPlan(
        batch_size=config.batch_size,
        steps_per_epoch=STEPS_PER_EPOCH,
        augmentation=data.Augmentation(config.data.crop_padding, config.data.horizontal_flip),
        key=jax.random.key(1),
        sharding=sharding.batch_sharded(mesh),
    )


def matmul(size: int, dtype: str) -> Callable[[], None]:
    """Computes a square matrix product and waits for it."""
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(lambda m: m @ m)
    return lambda: product(matrix).block_until_ready()


def waited(arrays: Any) -> Any:
    """The arrays of a run once they are there."""
    return jax.block_until_ready(arrays)


def device_mib() -> float | None:
    """Peak memory of an accelerator; None on CPU, where the process's own counts."""
    statistics = jax.devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] / 2**20 if statistics else None


def device_kind() -> str:
    """What JAX calls the device."""
    return jax.devices()[0].device_kind


def _examples(config, placement):
    """Random images, enough for a few steps, and their order."""
    rng = np.random.default_rng(0)
    number = config.batch_size * STEPS_PER_EPOCH
    split = data.Split(
        rng.integers(0, 256, (number, *IMAGE_SHAPE), np.uint8),
        rng.integers(0, NUM_CLASSES, number).astype(np.int32),
    )
    order = jax.device_put(jnp.arange(number, dtype=jnp.int32), placement)
    return data.put_on_device(split, placement), order


def _mesh():
    """One accelerator, as PyTorch's side uses; of a CPU all its devices, which are its cores."""
    devices = jax.devices()
    return sharding.create_mesh(devices if jax.default_backend() == "cpu" else devices[:1])


def _network_and_batch(config):
    model = components.create_network(config, NUM_CLASSES)
    variables = jax.jit(model.init)(
        jax.random.key(config.seed), jnp.zeros((1, *IMAGE_SHAPE), jnp.float32)
    )
    split, _ = _examples(config, None)
    images = data.pipeline.to_float(split.images[: config.batch_size])
    return model, variables, images, split.labels[: config.batch_size]


def _weights(variables):
    return {f"weight/{k}": v for k, v in pytorch.from_variables("resnet18", variables).items()}
