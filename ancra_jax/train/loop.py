"""Trains a network: ``python -m ancra_jax.train --config=configs/digits.py:trades --workdir=DIR``.

The same command on the same directory continues where the run stopped, and ends with the same
parameters, bit for bit, as a run that was never interrupted (on the same machine).
"""

import contextlib
import math
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from ancra_jax import config as config_lib
from ancra_jax import data, methods
from ancra_jax.cli.progress import Bar
from ancra_jax.cli.signals import Interrupted, StopSignal
from ancra_jax.config.schema import Config
from ancra_jax.errors import UsageError
from ancra_jax.run import build as components
from ancra_jax.run import multihost, sharding
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.averaging import make_refresh_statistics
from ancra_jax.run.checkpoint import Checkpoints
from ancra_jax.run.state import TrainState, create_train_state
from ancra_jax.train import optim, selection
from ancra_jax.train.log import TrainingLog
from ancra_jax.train.metrics import MetricsWriter
from ancra_jax.train.step import make_train_step
from ancra_jax.train.teacher import load_teacher


def train(config: Config, workdir: str) -> TrainState:
    """Trains until the configured end; continues a run that the directory holds.

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
    # ---- Data, network, method ----
    method = methods.create(config)
    dataset = components.load_dataset(config.data)
    splits = components.split_dataset(dataset, config)
    train_split = data.extend(splits.train, splits.extra)
    mesh = sharding.create_mesh()
    sharding.check_batch_size(config.batch_size, len(train_split), mesh, "config.batch_size")
    selection_batch = config.selection.batch_size or config.batch_size
    if config.selection.batch_size:
        sharding.check_batch_size(
            selection_batch, selection_batch, mesh, "config.selection.batch_size"
        )
    init_key, order_key, step_key, selection_key, extra_key = jax.random.split(
        jax.random.key(config.seed), 5
    )
    batches = components.batch_plan(config, splits, step_key, extra_key, mesh)
    model = components.create_model(config, dataset.num_classes)
    components.check_attention(config, model, dataset.image_shape)
    averaging = components.averaging(config)
    teacher = load_teacher(config.distillation, dataset, mesh)
    if multihost.is_main():
        workdir_lib.open_for_training(workdir, config)
    multihost.barrier("workdir")
    path = Path(workdir)

    # ---- State, step ----
    steps_per_epoch = batches.steps_per_epoch
    last_step = config.epochs * steps_per_epoch
    if config.max_steps:
        last_step = min(last_step, config.max_steps)
    optimizer = optim.create(config.optimizer, config.epochs, steps_per_epoch)
    everywhere = sharding.replicated(mesh)
    create_state = jax.jit(
        lambda: create_train_state(
            model.init,
            optimizer,
            dataset.image_shape,
            init_key,
            method.init_state(jnp.asarray(train_split.labels), dataset.num_classes),
            averaging,
        ),
        out_shardings=everywhere,
    )
    train_step = make_train_step(model.apply, method, optimizer, batches, averaging)
    refresh_statistics = make_refresh_statistics(model.apply, batches)
    num_examples = len(splits.train)
    permutation_of = jax.jit(
        lambda epoch: data.epoch_permutation(jax.random.fold_in(order_key, epoch), num_examples),
        out_shardings=everywhere,
    )
    count_correct = selection.make_count_correct(
        model.apply, config.attack, config.selection, selection_key
    )

    # ---- Continue or start ----
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            contextlib.closing(
                Checkpoints(
                    path / "checkpoints",
                    metrics=[
                        selection.metric_name(weights, selection.ROBUST_ACCURACY)
                        for weights in averaging.weights
                    ],
                )
            )
        )
        inputs = _fingerprints(dataset, splits, teacher)
        state = _restore(checkpoints, create_state, everywhere, inputs)
        state = create_state() if state is None else state
        first_step = int(state.step)
        if first_step >= last_step:
            print(f"{workdir}: finished already, at step {first_step}; nothing to do")
            return state
        train_data = data.put_on_device(train_split, everywhere)
        facts = {"class_names": dataset.class_names, "image_shape": dataset.image_shape, **inputs}
        selection_split = splits.selection
        predict_teacher = teacher.predict if teacher else None
        del dataset, splits, train_split  # the devices' copy is the only one from here on
        writer = None
        if multihost.is_main():
            writer = stack.enter_context(
                contextlib.closing(MetricsWriter(path, resume_step=first_step))
            )
            workdir_lib.record_start(path, first_step)
        stop = stack.enter_context(StopSignal())
        bar = stack.enter_context(
            Bar(config.name, last_step, first_step, quiet=not multihost.is_main())
        )
        if first_step:
            bar.print(f"continuing {workdir} at step {first_step}")
        log = TrainingLog(writer, bar, config, steps_per_epoch)

        # ---- Train ----
        permutation = permutation_of(first_step // steps_per_epoch)
        for step in range(first_step + 1, last_step + 1):
            if (step - 1) % steps_per_epoch == 0:
                permutation = permutation_of((step - 1) // steps_per_epoch)
            state, metrics = train_step(state, train_data, permutation, predict_teacher)
            log.add(step, metrics)

            weights = averaging.weights_after(step // steps_per_epoch)
            if "swa" in weights and step % steps_per_epoch == 0:
                averages = refresh_statistics(state.averages, train_data, permutation, step)
                state = state._replace(averages=averages)

            epoch_ends = step % steps_per_epoch == 0 or step == last_step
            epoch = math.ceil(step / steps_per_epoch)
            stopping = stop.requested or checkpoints.reached_preemption(step)
            every = config.checkpoint_every_steps
            save = epoch_ends or stopping or (every and step % every == 0)
            if save or step % config.log_every_steps == 0:
                log.flush()  # and so no state is saved whose loss was not looked at
            accuracies = None
            if epoch_ends and (epoch % config.selection.every_epochs == 0 or step == last_step):
                accuracies = selection.evaluate_selection(
                    count_correct,
                    {name: state.variables_of(name) for name in weights},
                    selection_split,
                    selection_batch,
                    sharding.batch_sharded(mesh),
                )
                log.selection(step, epoch, accuracies)
            if save:
                checkpoints.save(step, state, accuracies, {"epoch": epoch, **facts})
            if stopping and step < last_step:
                raise Interrupted(stop.signal, step)
    return state


_SETTINGS = {
    "data": "config.data",
    "extra_data": "config.extra_data.path",
    "teacher": "config.distillation.teacher",
}


def _fingerprints(dataset, splits, teacher) -> dict[str, str]:
    """What a run is made of besides its configuration, as far as it is used."""
    fingerprints = {"data": dataset.fingerprint}
    if splits.extra is not None:
        fingerprints["extra_data"] = splits.extra.fingerprint
    if teacher is not None:
        fingerprints["teacher"] = teacher.fingerprint
    return fingerprints


def _restore(checkpoints, create_state, everywhere, inputs) -> TrainState | None:
    abstract = sharding.abstract_on(jax.eval_shape(create_state), everywhere)
    restored = checkpoints.restore_latest(abstract)
    if restored is None:
        return None
    state, extra = restored
    for name, fingerprint in inputs.items():
        if extra[name] != fingerprint:
            raise UsageError(
                f"{_SETTINGS[name]}: its contents differ from those that "
                f"{checkpoints.directory.parent} was trained on (fingerprint {fingerprint}, was "
                f"{extra[name]})"
            )
    return state


def define_flags():
    """The command's flags; not defined on import, so that a notebook can import every command."""
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
    """The command."""
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
