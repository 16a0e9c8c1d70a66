"""Train a network: ``ancra train --config=digits.py:trades --workdir=DIR``.

The same command on the same directory continues where the run stopped, and ends with the same
parameters, bit for bit, as a run that was never interrupted (on the same machine).
"""

import contextlib
import dataclasses
import math
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh
from jaxtyping import Array, Int, Int32

from ancra_jax import cli, data, methods, models
from ancra_jax.cli import backend
from ancra_jax.cli.files import import_shipped, shipped_files
from ancra_jax.cli.profile import Profile, check_steps
from ancra_jax.cli.settings import Source
from ancra_jax.config import listable_path, shown, warnings_of
from ancra_jax.config.fields import is_mapping
from ancra_jax.config.paths import as_list
from ancra_jax.config.schema import Config
from ancra_jax.errors import Problems, UsageError
from ancra_jax.ops.target import compiler_options
from ancra_jax.run import automatic, build, initial, multihost, sharding
from ancra_jax.run import averaging as averaging_lib
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.checkpoint import Checkpoints
from ancra_jax.run.multihost import Interrupted, StoppableStep, StopSignal
from ancra_jax.run.objects import open_checkpoints
from ancra_jax.train.log import TrainingLog, tell_missing
from ancra_jax.train.result import TrainingResult
from ancra_jax.train.selection import make_select
from ancra_jax.train.step import (
    TrainState,
    create_optimizer,
    create_train_state,
    learning_rate,
    make_train_step,
    scaled,
)
from ancra_jax.train.teacher import load_teacher
from ancra_jax.train.trackers import NAMES as TRACKERS
from ancra_jax.train.trackers import Tracker, Trackers
from ancra_jax.train.trackers import find as find_tracker


def run(
    config: Source,
    workdir: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    *,
    trackers: Sequence[Tracker | str] = (),
    **more: Any,
) -> TrainingResult:
    """Train as the command does; continue the run that the directory holds.

    Args:
      config: ``'digits.py:trades'``, the path of a file of one's own, or all settings: what
        ``get_config`` of such a file returns, a `Config`, or a mapping.
      workdir: as for `train`.
      settings: changes to it by dotted name, ``{'attack.epsilon': 0.1}``, or nested.
      trackers: what else is told of the metrics: objects with ``log`` and ``close``, or names, as
        for ``--tracker``; see `ancra_jax.train.trackers`.
      **more: further ones, ``epochs=2``.

    Raises:
      UsageError: with everything that is wrong; and as `train`.
    """
    if settings is not None and not is_mapping(settings):
        raise UsageError(f"{settings=}: must be a mapping, from names of settings to values")
    problems, changes = Problems(), {**(settings or {}), **more}
    with problems.collect():
        workdir = listable_path(workdir, "--workdir")
    with problems.collect():
        check = partial(build.check, devices=jax.device_count())
        config = cli.settings_of(config, changes, check)
    problems.raise_all()
    assert isinstance(config, Config) and isinstance(workdir, str)
    _warn(config, cli.changed(changes))
    state = train(config, workdir, trackers)
    return TrainingResult(workdir, workdir_lib.read_config(workdir), state)


def train(
    config: Config, workdir: str, trackers: Sequence[Tracker | str] = (), profile_steps: str = ""
) -> TrainState:
    """Train until the configured end; continue the run that the directory holds.

    Args:
      config: all settings, which are not changed.
      workdir: gets ``config.json``, ``starts.jsonl``, ``checkpoints/``, ``metrics.jsonl`` and
        ``tensorboard/``.
      trackers: as for `run`.
      profile_steps: steps to trace, ``'10:20'``, from 1 at the start of this call, into the
        directory's ``profile``.

    Returns:
      The final state.

    Raises:
      UsageError: a setting or the directory cannot be used.
      NonFiniteLossError: the loss diverged; checkpoints from before it are kept.
      Interrupted: by a signal, after saving a checkpoint.
    """
    workdir = listable_path(workdir, "--workdir")
    found = [find_tracker(one) for one in as_list(trackers, "trackers")]
    mesh = sharding.create_mesh()
    multihost.connect(mesh)
    with contextlib.ExitStack() as stack:
        # ---- Prepare ----
        config = choose_settings(config, workdir, mesh.size)
        if sharding.is_main():
            workdir_lib.check_for_training(workdir, config)
        problems = Problems()
        build.check(config, problems, devices=mesh.size)
        problems.raise_all()
        training = Training(config, mesh)
        if sharding.is_main():
            workdir_lib.open_for_training(workdir, config)
            stack.enter_context(workdir_lib.one_writer(workdir))
        multihost.check_shared(workdir)
        multihost.keep_log(workdir)

        # ---- Start or continue ----
        checkpoints = open_checkpoints(workdir, weights=training.averaging.weights)
        stack.push(multihost.if_all_come(checkpoints.close))
        state, unwritten = training.first_state(checkpoints)
        first_step, every = int(state.step), training.steps_per_epoch
        if sharding.is_main():
            ends = range(every, first_step + 1, every)  # of epochs
            tell_missing(workdir, ends if unwritten else {*ends, first_step} - {0})
        if first_step >= training.last_step:
            print(f"{workdir}: finished already, at step {first_step}; nothing to do")
            return state
        if sharding.is_main():
            workdir_lib.record_start(workdir, first_step, **training.started_from)
            if first_step:
                print(f"continuing {workdir} at step {first_step}")
            if rate := training.started_from.get("learning_rate"):
                print(
                    f"learning rate {rate:.4g}: {shown(config, 'optimizer.learning_rate')} times "
                    f"{shown(config, 'batch_size')} over "
                    f"{shown(config, 'optimizer.base_batch_size')}"
                )
        tracked = Trackers(found if sharding.is_main() else [], config, workdir)
        stack.callback(tracked.close)
        log = stack.enter_context(
            TrainingLog(config, workdir, first_step, training.last_step, every, unwritten, tracked)
        )
        stop = stack.enter_context(StopSignal())
        profile = stack.enter_context(Profile(profile_steps, workdir))

        # ---- Train ----
        num_epochs = math.ceil(training.last_step / training.steps_per_epoch)
        for epoch in range(first_step // training.steps_per_epoch, num_epochs):
            state = training.train_epoch(state, epoch, checkpoints, log, stop, profile)
    return state


def _warn(config: Config, changed: Sequence[str]) -> None:
    for line in warnings_of(config, changed) if sharding.is_main() else ():
        print(f"warning: {line}", flush=True)


def choose_settings(config: Config, workdir: str, devices: int) -> Config:
    """Return the configuration with what it leaves to be chosen by the data, or by its run."""
    recorded = workdir_lib.read_config(workdir) if workdir_lib.holds_run(workdir) else None
    contents = build.inspect_dataset(config.data, Problems())  # others report what is wrong
    chosen = automatic.choose(config, contents, devices=devices, recorded=recorded)
    if contents and not recorded and sharding.is_main():
        for line in filter(None, (contents.note, automatic.describe(config, chosen))):
            print(line)
    return chosen


class Training:
    """What a configuration determines: the data on the devices, and functions to be compiled."""

    def __init__(self, config: Config, mesh: Mesh):
        # ---- The parts of the run ----
        method = methods.create(config)
        dataset = build.load_dataset(config.data)
        network = build.create_network(config, dataset.num_classes)
        problems = Problems()
        with problems.collect():
            splits = build.split_dataset(dataset, config)
        with problems.collect():
            build.check_network(config, network, dataset.image_shape, dataset.num_classes)
            build.check_lengths(config, dataset.image_shape)
        problems.raise_all()
        parts = [split for split in (splits.train, splits.extra) if split is not None]
        everywhere = sharding.replicated(mesh)
        keys = jax.random.split(jax.random.key(config.seed, impl="threefry2x32"), 5)
        init_key, order_key, step_key, selection_key, extra_key = keys
        batches = build.batch_plan(config, splits, step_key, extra_key, mesh)
        averaging = build.averaging(config)
        teacher = None
        if method.needs_teacher:
            teacher = load_teacher(config, dataset, mesh)
        settings, length = scaled(config), (config.epochs, batches.steps_per_epoch)
        optimizer = create_optimizer(settings, *length)

        # ---- What the functions below keep of the data set: not its images ----
        labels = np.concatenate([split.labels for split in parts])
        num_classes, image_shape = dataset.num_classes, dataset.image_shape
        num_examples = len(splits.train)

        def create_state() -> TrainState:
            method_state = method.init_state(jnp.asarray(labels), num_classes)
            return create_train_state(
                network.init, optimizer, image_shape, init_key, method_state, averaging
            )

        def permutation(epoch: Int[Array, ""]) -> Int32[Array, "examples"]:
            return data.epoch_permutation(jax.random.fold_in(order_key, epoch), num_examples)

        # ---- What training uses ----
        self.config = config
        self.averaging = averaging
        self.steps_per_epoch = batches.steps_per_epoch
        last_step = config.epochs * batches.steps_per_epoch
        self.last_step = min(last_step, config.max_steps or last_step)
        streams = config.extra_data.on_host
        held = splits.train if streams else data.extend(splits.train, splits.extra)
        self.train_data = data.put_on_device(held, everywhere)
        self.host_data = None  # extra examples, if each step brings its own
        if streams and splits.extra is not None and batches.extra is not None:
            self.host_data = data.HostExamples(splits.extra, batches.extra, everywhere)
        self.teacher = teacher.model if teacher else None  # what the method distils from
        sources = {"data": dataset, "extra_data": splits.extra, "teacher": teacher}
        self.facts = {  # what checkpoints tell of the data and the teacher
            "class_names": dataset.class_names,
            "image_shape": image_shape,
            **{name: used.fingerprint for name, used in sources.items() if used is not None},
        }
        # XLA's CPU backend takes 18 s to optimise the drawing of a ResNet-18's parameters, and 2 s
        # to compile it as it stands, to the same bits.
        plainly = compiler_options(xla_backend_optimization_level=0)
        jit_once = partial(jax.jit, out_shardings=everywhere, compiler_options=plainly)
        self.create_state: Any = jit_once(create_state)
        self.load_initial = partial(initial.load, config, network, image_shape, mesh)
        rate = {"learning_rate": settings.learning_rate}
        self.started_from: dict[str, Any] = rate if config.optimizer.base_batch_size else {}
        self.abstract_state = sharding.abstract_on(jax.eval_shape(create_state), everywhere)
        self.permutation = jit_once(permutation)  # of an epoch, from 0
        self.step = make_train_step(
            network,
            method,
            optimizer,
            batches,
            averaging,
            learning_rate(settings, *length),
            parts=config.optimizer.accumulation_steps or 1,
        )
        self.stoppable_step = StoppableStep(self.step, mesh)
        self.refresh_statistics = averaging_lib.make_refresh_statistics(network.apply, batches)
        self.select = make_select(network.apply, config, selection_key, splits.selection, mesh)

    def first_state(self, checkpoints: Checkpoints) -> tuple[TrainState, list[dict[str, float]]]:
        """Return the state of the latest checkpoint, or the initial one; and unwritten metrics.

        Raises:
          UsageError: the checkpoint's run was trained on other data, or with another teacher.
        """
        restored = checkpoints.restore_latest(self.abstract_state)
        if restored is None:
            state = self.create_state()
            self.create_state.clear_cache()  # a large program, which is not called again
            if self.config.init_from:
                variables, origin = self.load_initial()
                params, batch_stats = variables["params"], variables.get("batch_stats", {})
                averages = jax.jit(self.averaging.init)(params, batch_stats)
                state = state._replace(params=params, batch_stats=batch_stats, averages=averages)
                self.started_from["init_from"] = origin
            return state, []
        state, saved = restored
        settings = {
            "data": "--config.data",
            "extra_data": "--config.extra_data.path",
            "teacher": build.TEACHER,
        }
        for name, setting in settings.items():
            if name in self.facts and saved[name] != self.facts[name]:
                raise UsageError(
                    f"{setting}: its contents differ from those that "
                    f"{checkpoints.directory.parent} was trained on (fingerprint "
                    f"{self.facts[name]}, was {saved[name]})"
                )
        return state, saved.get("unwritten_metrics", [])

    def data_at(self, step: int) -> data.DeviceSplit | data.StreamedSplit:
        """Return what a step (from 0) takes its batch from."""
        if self.host_data is None:
            return self.train_data
        return data.StreamedSplit(self.train_data, self.host_data.at(step))

    def train_epoch(
        self,
        state: TrainState,
        epoch: int,
        checkpoints: Checkpoints,
        log: TrainingLog,
        stop: StopSignal,
        profile: Profile,
    ) -> TrainState:
        """Train until an epoch (from 0) or the run ends; save, log and select on the way.

        Raises:
          Interrupted: by a signal, after saving a checkpoint.
        """
        config = self.config
        end = min((epoch + 1) * self.steps_per_epoch, self.last_step)
        permutation = self.permutation(epoch)
        for step in range(int(state.step) + 1, end + 1):
            operands = (state, self.data_at(step - 1), permutation, self.teacher)
            state, metrics = self.stoppable_step(stop, *operands)
            log.add(step, metrics)
            profile.step(metrics)

            weights = self.averaging.weights_after(step // self.steps_per_epoch)
            if "swa" in weights and step % self.steps_per_epoch == 0:
                averages = self.refresh_statistics(
                    state.averages, self.train_data, permutation, step
                )
                state = state._replace(averages=averages)

            stopping = self.stoppable_step.stopping(stop)
            every = config.checkpoint_every_steps
            save = step == end or stopping or (every and step % every == 0)
            record = step == end or step % config.log_every_steps == 0
            if save or record:
                log.fetch()  # and so no state is saved whose loss was not looked at
            if record:
                log.record(step)
            accuracies = None
            period = config.selection.every_epochs or 1
            selects = (epoch + 1) % period == 0 or step == self.last_step
            if step == end and selects:
                accuracies = self.select({name: state.variables_of(name) for name in weights})
                log.selection(step, epoch + 1, accuracies)
            if save:
                log.save()
                extra = {"epoch": epoch + 1, "unwritten_metrics": log.unwritten, **self.facts}
                checkpoints.save(step, state, accuracies, extra)
            if stopping and step < self.last_step:
                raise Interrupted(stop.number or signal.SIGTERM, step)
        return state


def define_flags() -> None:
    """Define the command's flags; not on import, so that a notebook can import every command."""
    flags.DEFINE_multi_string("config", [], _help())
    flags.DEFINE_string("workdir", None, "Directory of the run; continued if it holds one.")
    flags.DEFINE_list(
        "tracker",
        [],
        f"What else is told of the metrics: {', '.join(TRACKERS)}, or module:function, several "
        "separated by commas; see docs/methods.md.",
    )
    flags.DEFINE_string(
        "profile_steps",
        "",
        "Trace these steps of this call, 10:20, into the work directory's profile/.",
    )
    backend.define_process_flags()


def _help() -> str:
    """Return where the settings are, and what there is to choose from."""
    groups = [field.name for field in dataclasses.fields(Config)]
    return "\n".join(
        [
            "Configuration: FILE.py:METHOD, for instance cifar10.py:trades_ancra. FILE.py is one's "
            f"own, or comes with the package: {', '.join(shipped_files())}.",
            f"Their methods: {', '.join(import_shipped('common').METHODS)}. docs/methods.md "
            "describes them.",
            f"--config.method.name: {', '.join(methods.available())}.",
            f"--config.data.name: {', '.join(data.names())}. docs/data.md describes them.",
            f"--config.model.name: {', '.join(models.available())}.",
            f"Settings are changed with --config.NAME=VALUE, NAME being {', '.join(groups)}; those "
            "below them, such as --config.optimizer.learning_rate=0.1, and all defaults are in "
            "ancra_jax/config/schema.py.",
        ]
    )


def main(arguments: flags.FlagValues) -> int | None:
    """Run the command."""
    backend.set_up(arguments)
    problems = Problems()
    with problems.collect():
        listable_path(arguments.workdir or "", "--workdir")
    with problems.collect():
        check_steps(arguments.profile_steps)
    with problems.collect():
        devices = 1 if arguments.distributed else jax.device_count()  # not before it has joined
        config = cli.read_settings(arguments.config, partial(build.check, devices=devices))
    for name in arguments.tracker:
        with problems.collect():
            find_tracker(name)
    problems.raise_all()
    backend.join_processes(arguments)
    _warn(config, cli.changed(arguments.config))
    try:
        with multihost.ending_together():
            train(config, arguments.workdir, arguments.tracker, arguments.profile_steps)
            if sharding.is_main():
                workdir = shlex.quote(listable_path(arguments.workdir, "--workdir"))
                print(f"the run is in {workdir}; next: ancra evaluate --workdir={workdir}")
    except Interrupted as interruption:
        print(interruption)
        return interruption.exit_status
    return None
