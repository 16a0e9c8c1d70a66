"""Train a network: ``python -m ancra_jax.train --config=configs/digits.py:trades --workdir=DIR``.

The same command on the same directory continues where the run stopped, and ends with the same
parameters, bit for bit, as a run that was never interrupted (on the same machine).
"""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jaxtyping import Array, Int, Int32, PyTree
from ml_collections import config_flags

from ancra_jax import config as config_lib
from ancra_jax import data, methods
from ancra_jax.cli.signals import Interrupted, StopSignal
from ancra_jax.config.schema import Config
from ancra_jax.errors import UsageError
from ancra_jax.methods.attack import Model
from ancra_jax.run import averaging as averaging_lib
from ancra_jax.run import build, multihost, sharding
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.checkpoint import Checkpoints
from ancra_jax.run.state import TrainState, create_train_state
from ancra_jax.train import optim
from ancra_jax.train.log import TrainingLog
from ancra_jax.train.selection import Select, make_select
from ancra_jax.train.step import TrainStep, make_train_step
from ancra_jax.train.teacher import load_teacher


def train(config: Config, workdir: str) -> TrainState:
    """Train until the configured end; continue the run that the directory holds.

    Args:
      config: see ``configs/``.
      workdir: gets ``config.json``, ``starts.jsonl``, ``checkpoints/``, ``metrics.jsonl`` and
        ``tensorboard/``.

    Returns:
      The final state.

    Raises:
      UsageError: a setting or the directory cannot be used.
      NonFiniteLossError: the loss diverged; checkpoints from before it are kept.
      Interrupted: by a signal, after saving a checkpoint.
    """
    # ---- Prepare ----
    setup = _prepare(config)
    if multihost.is_main():
        workdir_lib.open_for_training(workdir, config)
    multihost.barrier("workdir")

    with contextlib.ExitStack() as stack:
        # ---- Start or continue ----
        checkpoints = Checkpoints(Path(workdir) / "checkpoints", metrics=setup.averaging.metrics)
        stack.callback(checkpoints.close)
        state = _first_state(checkpoints, setup)
        first_step = int(state.step)
        if first_step >= setup.last_step:
            print(f"{workdir}: finished already, at step {first_step}; nothing to do")
            return state
        if multihost.is_main():
            workdir_lib.record_start(workdir, first_step)
        log = stack.enter_context(
            TrainingLog(config, workdir, first_step, setup.last_step, setup.steps_per_epoch)
        )
        stop = stack.enter_context(StopSignal())

        # ---- Train ----
        for epoch in range(first_step // setup.steps_per_epoch, setup.num_epochs):
            state = _train_epoch(setup, state, epoch, checkpoints, log, stop)
    return state


class _Setup(NamedTuple):
    """What a configuration determines: the data on the devices, and functions to be compiled."""

    config: Config
    train_data: data.DeviceSplit  # the training split, then the extra examples
    teacher: Model | None  # what the method distils from
    facts: dict[str, Any]  # what checkpoints tell of the data and the teacher
    averaging: averaging_lib.Averaging
    steps_per_epoch: int
    num_epochs: int
    last_step: int
    create_state: Callable[[], TrainState]  # before the first step
    abstract_state: PyTree[jax.ShapeDtypeStruct]  # its shapes, dtypes and places on the devices
    permutation: Callable[[int], Int32[Array, "examples"]]  # of an epoch, from 0
    step: TrainStep
    refresh_statistics: averaging_lib.RefreshStatistics  # of SWA, at the end of an epoch
    select: Select


def _prepare(config: Config) -> _Setup:
    method = methods.create(config)
    dataset = build.load_dataset(config.data)
    splits = build.split_dataset(dataset, config)
    train_split = data.extend(splits.train, splits.extra)
    mesh = sharding.create_mesh()
    keys = jax.random.split(jax.random.key(config.seed), 5)
    init_key, order_key, step_key, selection_key, extra_key = keys
    batches = build.batch_plan(config, splits, step_key, extra_key, mesh)
    network = build.create_network(config, dataset.num_classes)
    build.check_attention(config, network, dataset.image_shape)
    averaging = build.averaging(config)
    teacher = load_teacher(config.distillation, dataset, mesh)
    sources = {"data": dataset, "extra_data": splits.extra, "teacher": teacher}

    # What the functions below keep; the images on the host are not among it.
    labels = train_split.labels
    num_classes = dataset.num_classes
    image_shape = dataset.image_shape
    num_examples = len(splits.train)
    everywhere = sharding.replicated(mesh)
    optimizer = optim.create(config.optimizer, config.epochs, batches.steps_per_epoch)
    last_step = config.epochs * batches.steps_per_epoch
    last_step = min(last_step, config.max_steps or last_step)

    def create_state() -> TrainState:
        method_state = method.init_state(jnp.asarray(labels), num_classes)
        return create_train_state(
            network.init, optimizer, image_shape, init_key, method_state, averaging
        )

    def permutation(epoch: Int[Array, ""]) -> Int32[Array, "examples"]:
        return data.epoch_permutation(jax.random.fold_in(order_key, epoch), num_examples)

    return _Setup(
        config=config,
        train_data=data.put_on_device(train_split, everywhere),
        teacher=teacher.model if teacher else None,
        facts={
            "class_names": dataset.class_names,
            "image_shape": image_shape,
            **{name: used.fingerprint for name, used in sources.items() if used is not None},
        },
        averaging=averaging,
        steps_per_epoch=batches.steps_per_epoch,
        num_epochs=math.ceil(last_step / batches.steps_per_epoch),
        last_step=last_step,
        create_state=jax.jit(create_state, out_shardings=everywhere),
        abstract_state=sharding.abstract_on(jax.eval_shape(create_state), everywhere),
        permutation=jax.jit(permutation, out_shardings=everywhere),
        step=make_train_step(network.apply, method, optimizer, batches, averaging),
        refresh_statistics=averaging_lib.make_refresh_statistics(network.apply, batches),
        select=make_select(network.apply, config, selection_key, splits.selection, mesh),
    )


def _first_state(checkpoints: Checkpoints, setup: _Setup) -> TrainState:
    """Return the state of the latest checkpoint, or the initial one.

    Raises:
      UsageError: the checkpoint's run was trained on other data, or with another teacher.
    """
    restored = checkpoints.restore_latest(setup.abstract_state)
    if restored is None:
        return setup.create_state()
    state, saved = restored
    settings = {
        "data": "config.data",
        "extra_data": "config.extra_data.path",
        "teacher": "config.distillation.teacher",
    }
    for name, setting in settings.items():
        if name in setup.facts and saved[name] != setup.facts[name]:
            raise UsageError(
                f"{setting}: its contents differ from those that {checkpoints.directory.parent} "
                f"was trained on (fingerprint {setup.facts[name]}, was {saved[name]})"
            )
    return state


def _train_epoch(
    setup: _Setup,
    state: TrainState,
    epoch: int,
    checkpoints: Checkpoints,
    log: TrainingLog,
    stop: StopSignal,
) -> TrainState:
    """Train until an epoch (from 0) or the run ends; save, log and select on the way.

    Raises:
      Interrupted: by a signal, after saving a checkpoint.
    """
    config = setup.config
    steps_per_epoch = setup.steps_per_epoch
    end = min((epoch + 1) * steps_per_epoch, setup.last_step)
    permutation = setup.permutation(epoch)
    for step in range(int(state.step) + 1, end + 1):
        state, metrics = setup.step(state, setup.train_data, permutation, setup.teacher)
        log.add(step, metrics)

        weights = setup.averaging.weights_after(step // steps_per_epoch)
        if "swa" in weights and step % steps_per_epoch == 0:
            averages = setup.refresh_statistics(state.averages, setup.train_data, permutation, step)
            state = state._replace(averages=averages)

        stopping = stop.requested or checkpoints.reached_preemption(step)
        every = config.checkpoint_every_steps
        save = step == end or stopping or (every and step % every == 0)
        if save or step % config.log_every_steps == 0:
            log.flush()  # and so no state is saved whose loss was not looked at
        accuracies = None
        selects = (epoch + 1) % config.selection.every_epochs == 0 or step == setup.last_step
        if step == end and selects:
            accuracies = setup.select({name: state.variables_of(name) for name in weights})
            log.selection(step, epoch + 1, accuracies)
        if save:
            checkpoints.save(step, state, accuracies, {"epoch": epoch + 1, **setup.facts})
        if stopping and step < setup.last_step:
            raise Interrupted(stop.signal, step)
    return state


def define_flags() -> None:
    """Define the command's flags; not on import, so that a notebook can import every command."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Configuration: FILE.py:METHOD, for instance configs/cifar10.py:trades_ancra.",
        lock_config=False,
        accept_new_attributes=True,  # method.options.*; others are refused when it is read
    )
    flags.DEFINE_string("workdir", None, "Directory of the run; continued if it holds one.")
    multihost.define_flags()


def main(arguments: flags.FlagValues) -> int | None:
    """Run the command."""
    if arguments.config is None:
        raise UsageError("--config is missing, for instance --config=configs/digits.py:trades")
    if not arguments.workdir:
        raise UsageError("--workdir is missing: the directory that the run is kept in")
    multihost.initialize(arguments)
    try:
        train(config_lib.from_mapping(arguments.config), arguments.workdir)
    except Interrupted as interruption:
        print(interruption)
        return interruption.exit_status
    return None
