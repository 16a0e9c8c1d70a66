"""Evaluates a trained network: ``ancra evaluate --workdir=DIR --suite=paper``.

Interrupted, the same command continues; a finished result is never overwritten without ``--force``.
"""

import contextlib
import inspect
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from ancra_jax.attacks.adaptive import LEVELS, Level
from ancra_jax.attacks.autoattack.ensemble import Budget, plan
from ancra_jax.attacks.job import PRECISIONS
from ancra_jax.attacks.threat_models import NORMS, threat_model
from ancra_jax.cli import backend, options
from ancra_jax.cli.profile import Profile, check_steps
from ancra_jax.config import WEIGHTS, Config, directory_path, options_of
from ancra_jax.config.paths import as_list
from ancra_jax.data import Dataset, check_count
from ancra_jax.errors import Problems, UsageError, renamed
from ancra_jax.evaluate import paper, released
from ancra_jax.evaluate.features import features_spec
from ancra_jax.evaluate.result import EvaluationResult, read_evaluation
from ancra_jax.evaluate.sequences import Source, adaptive_spec, run_autoattack, run_diagnostics
from ancra_jax.evaluate.spec import Model, Spec, Target, compute
from ancra_jax.ops.files import as_path
from ancra_jax.ops.hosts import Share, share_of
from ancra_jax.results.names import APGD, AUTOATTACK, DIAGNOSTICS
from ancra_jax.results.store import ResultStore, evaluation_name, under_threat_model
from ancra_jax.run import build as components
from ancra_jax.run import multihost, sharding
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.trained import TrainedModel, is_file, locate
from ancra_jax.run.weights import check_weights, load_network, load_run

SUITES = {
    "quick": ("paper",),
    "apgd": ("natural", "apgd"),
    "worst_case": ("paper", "apgd", "defence"),
    "paper": ("paper", "autoattack"),
    "autoattack": ("autoattack",),
    "adaptive": ("natural", "autoattack", "adaptive"),
    "diagnostics": ("diagnostics",),
    "released": ("natural", "released"),
    "features": ("features",),
    "all": ("paper", "autoattack", "adaptive", "diagnostics", "features"),
}
"""The parts of each suite, in the order in which they run: the cheap ones first."""
_ADAPTIVE = {"adaptive", "defence"}
TRANSFERRING = [suite for suite, parts in SUITES.items() if _ADAPTIVE & {*parts}]
"""The suites that try the adversarial images of other networks."""
_SERVE = {
    "suite": {*itertools.chain(*SUITES.values())},
    "autoattack_version": {"autoattack"},
    "adaptive_budget": _ADAPTIVE,
    "max_minutes": _ADAPTIVE,
}
"""Options by the parts that they change something in."""
_CHOICES: dict[str, Sequence[str]] = {
    "norm": ("own", *NORMS),
    "suite": list(SUITES),
    "autoattack_version": ("standard", "plus"),
    "adaptive_budget": LEVELS,
    "checkpoint": ("best", "last"),
    "weights": WEIGHTS,
    "search_precision": PRECISIONS,
}


@renamed(
    {
        r"--config\.data\.data_dir": "--data_dir",
        r"--config\.evaluation\.epsilon": "--epsilon",
        r"^run\.": "--",
    }
)
def run(
    workdir: str | os.PathLike[str],
    *,
    checkpoint: str = "best",
    weights: str = "raw",
    num_examples: int = 0,
    batch_size: int = 0,
    seed: int = 0,
    force: bool = False,
    suite: str = "paper",
    autoattack_version: str = "standard",
    attacks: Sequence[str] = (),
    adaptive_budget: Level = "standard",
    max_minutes: float = 0.0,
    transfer_from: Sequence[str] = (),
    data_dir: str = "",
    norm: str = "own",
    epsilon: float = 0.0,
    search_precision: str = "auto",
    profile_steps: str = "",
) -> EvaluationResult:
    """Run a suite on a checkpoint and return all its results; those that are there are kept.

    Args:
      workdir: directory of a run of ancra_jax.train.
      checkpoint: ``'best'`` on the selection split, or ``'last'``.
      weights: ``'raw'`` (the optimiser's), or an average that the run keeps, ``'ema'``, ``'swa'``.
      num_examples: the first so many of the test split; 0 for all.
      batch_size: most examples on the devices at a time; 0 for the training batch size. AutoAttack
        and the adaptive attacks take at most 32 on a CPU, 256 elsewhere.
      seed: of the attacks' randomness.
      force: compute again and replace finished results.
      suite: ``'quick'``: natural images, FGSM, PGD and C&W, on the final logits and on auxiliary
        heads; ``'apgd'``: natural images, APGD-CE and APGD-T, AutoAttack's two strongest;
        ``'worst_case'``: both, the attacks made for the network's defence, and transfer, if any;
        ``'paper'``: ``'quick'`` and AutoAttack; ``'autoattack'`` alone; ``'adaptive'``: natural
        images, AutoAttack and the attacks made for the network's defence; ``'diagnostics'``, which
        compare the results that are there; ``'released'``: natural images, FGSM and C&W as the
        authors' code has them; ``'features'``: their distances (the paper's Figures 1 and 3);
        ``'all'``: ``'paper'``, ``'adaptive'``, ``'diagnostics'``, ``'features'``.
      autoattack_version: which list of attacks, ``'standard'`` or ``'plus'``.
      attacks: of AutoAttack, in place of a suite: ``apgd-ce,apgd-t:num_restarts=3,square``.
      adaptive_budget: of the adaptive attacks: ``'quick'``, ``'standard'`` or ``'thorough'``.
      max_minutes: stop the adaptive attacks after so many; 0: no limit. The same call goes on.
      transfer_from: runs (their best checkpoints) or saved networks whose adversarial images are
        tried, in the suites ``'worst_case'``, ``'adaptive'`` and ``'all'``.
      data_dir: where the data lie now, if not where they were in training; they must be the same.
      norm: of another threat model than the run's own, whose results stay apart; with an epsilon.
      epsilon: its radius, on the [0, 1] pixel scale; 0: the run's own.
      search_precision: of searches, which ``'highest'`` judges: ``'highest'``, ``'high'`` (TF32),
        ``'default'``; ``'auto'``: that of results which are there, else ``'highest'``.
      profile_steps: trace these batches, ``'10:20'``, into the directory's ``profile``.

    Raises:
      UsageError: a setting, the directory, or what an interrupted call left there cannot be used.
    """
    workdir = directory_path(workdir, "--workdir")
    config, given = _read(locals())
    config, name = _under(config, evaluation_name(checkpoint, weights), norm, epsilon)
    with _joined(workdir) as (share, mesh):
        for line in _of_no_use(given) if share.is_first else ():
            print(f"warning: {line}", flush=True)
        dataset = components.load_dataset(config.data)
        num_examples = num_examples or len(dataset.test)
        check_count("--num_examples", num_examples, len(dataset.test))
        components.check_lengths(config, dataset.image_shape)
        model = load_run(workdir, mesh, dataset=dataset, checkpoint=checkpoint, weights=weights)
        _check_data(config, dataset, model.info["data"])
        size = min(batch_size or config.batch_size, num_examples)
        target = _target(model.outputs, dataset, size, mesh, share)
        sources = load_sources(given["transfer_from"], dataset, mesh)
        identity = _identity(config, dataset) | {"checkpoint": name, "step": model.info["step"]}
        identity |= {"num_examples": num_examples, "seed": seed}
        store = share.from_first(lambda: ResultStore(workdir, name))
        made = _made(config, model, adaptive_budget, max_minutes, sources)
        specs = _specs(config, suite, autoattack_version, made, given["attacks"])
        with Profile(profile_steps, workdir) as trace:
            results = _compute(specs, target, store, identity, force, search_precision, trace.step)
    return read_evaluation(workdir, name, results)


def _read(options: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Return the run's configuration and the options of `run`, checked."""
    paths = "workdir", "data_dir"  # may be no text
    options_of(run, {name: one for name, one in options.items() if name not in paths}, "run")
    config = workdir_lib.read_config(options["workdir"])
    config = replace(config, data=components.data_in(config.data, options["data_dir"]))
    field = "--transfer_from"
    given = {
        **options,
        "attacks": as_list(options["attacks"], "--attacks"),
        "transfer_from": [locate(one, field) for one in as_list(options["transfer_from"], field)],
    }
    check(config, given)
    return config, given


def _under(config: Config, checkpoint: str, norm: str, epsilon: float) -> tuple[Config, str]:
    """Return the configuration under a threat model, and what the results are kept under.

    Steps stay as large a part of the radius.
    """
    own = config.evaluation
    norm = own.norm if norm == "own" else norm
    if norm != own.norm and not epsilon:
        raise UsageError(f"--norm={norm}: needs its radius, --epsilon; the run's is of {own.norm}")
    try:
        epsilon = float(threat_model(norm, epsilon or own.epsilon).epsilon)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--{error}") from error  # speaks of epsilon
    if (norm, epsilon) == (own.norm, own.epsilon):
        return config, checkpoint
    size = own.step_size * epsilon / own.epsilon
    other = replace(own, norm=norm, epsilon=epsilon, step_size=size)
    return replace(config, evaluation=other), under_threat_model(checkpoint, norm, epsilon)


@contextlib.contextmanager
def _joined(workdir: str) -> Iterator[tuple[Share, Mesh]]:
    """Join the other processes, if any; the first keeps all others from writing to the directory.

    Yields:
      This process' share of every batch, and its own devices.
    """
    share, devices = share_of(jax.devices())
    multihost.connect(sharding.create_mesh())
    with contextlib.ExitStack() as stack:
        writer = workdir_lib.one_writer(workdir)
        share.from_first(lambda: stack.enter_context(writer) and None)
        multihost.keep_log(workdir)
        yield share, sharding.create_mesh(devices)


def _target(model: Model, dataset: Dataset, size: int, mesh: Mesh, share: Share) -> Target:
    """Return what is attacked, in batches of a size that is rounded up for the devices of all."""
    devices = mesh.size * share.count
    size = math.ceil(size / devices) * devices
    sharded = sharding.batch_sharded(mesh)
    return Target(model, dataset.test, size, sharded, dataset.class_names, share)


def _compute(
    specs: Sequence[Spec],
    target: Target,
    store: ResultStore,
    identity: dict[str, Any],
    force: bool,
    precision: str,
    watch: Callable[[], object],
) -> list[dict[str, Any]]:
    """Return the results of all attacks; errors come before anything is computed."""

    def refuse_others() -> None:
        for spec in () if force else specs:
            store.finished(spec.record(identity, precision, store))

    target.share.from_first(refuse_others)
    how: dict[str, Any] = {"force": force, "precision": precision, "watch": watch}
    return [compute(spec, target, store, identity, **how) for spec in specs]


def _made(
    config: Config,
    model: TrainedModel,
    budget: Level,
    max_minutes: float,
    sources: Sequence[Source],
) -> dict[str, list[Spec]]:
    """Return the parts of suites that depend on the network."""
    adaptive = adaptive_spec(config, budget, max_minutes, model.defences, sources)
    made = {"adaptive": [adaptive], "defence": [adaptive] if model.defences or sources else []}
    return made | {"features": [features_spec(config, model.classes)]}


def _identity(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Return what results say of the run that they are of."""
    data = {"data": dataset.title, "data_fingerprint": dataset.fingerprint}
    return {"method": config.name, **data}


def _check_data(config: Config, dataset: Dataset, trained_on: str | None) -> None:
    """Refuse other data than those a run was trained on; older checkpoints do not say which."""
    if trained_on not in (None, dataset.fingerprint):
        raise UsageError(
            f"--data_dir={config.data.data_dir}: holds other data than the run was trained on "
            f"(fingerprint {dataset.fingerprint}, was {trained_on})"
        )


def check(config: Config, options: Mapping[str, Any]) -> None:
    """Check what can be checked of the options of `run` before anything is loaded."""
    max_minutes, seed, weights = (options[name] for name in ("max_minutes", "seed", "weights"))
    num_examples, transfer_from = options["num_examples"], options["transfer_from"]
    problems = Problems()
    for name, allowed in _CHOICES.items():
        if options[name] not in allowed:
            problems.add(f"--{name}={options[name]!r}: allowed are {', '.join(allowed)}")
    for name in ("batch_size", "num_examples"):
        if options[name] < 0:
            problems.add(f"--{name}={options[name]}: must be at least 0")
    if not 0 <= max_minutes < math.inf:
        problems.add(f"--max_minutes={max_minutes}: must be a finite number of at least 0")
    if not 0 <= seed < 2**32:
        problems.add(f"--seed={seed}: must be 0 to {2**32 - 1}")
    try:
        plan(
            "custom" if options["attacks"] else "standard", options["attacks"] or None, 10, Budget()
        )
    except (TypeError, ValueError) as error:
        problems.add(f"--attacks: {error}")
    with problems.collect():
        check_steps(options["profile_steps"])
    with problems.collect():
        check_weights(config, weights)
    with problems.collect():
        counts = components.inspect_dataset(config.data, problems)
        if counts and num_examples:
            check_count("--num_examples", num_examples, counts[1])
    if transfer_from and (options["attacks"] or options["suite"] not in TRANSFERRING):
        chosen = "--attacks" if options["attacks"] else f"--suite={options['suite']}"
        problems.add(
            f"--transfer_from={','.join(transfer_from)}: {chosen} tries no other networks; allowed "
            f"with the suites {', '.join(TRANSFERRING)}"
        )
    names = [_name_of(path) for path in transfer_from]
    for path, name in zip(transfer_from, names, strict=True):
        with problems.collect():
            if not is_file(path):
                data = workdir_lib.read_config(path, "--transfer_from").data.name
                if data != config.data.name:
                    raise UsageError(
                        f"--transfer_from={path}: is a run on {data}, not {config.data.name}"
                    )
            if names.count(name) > 1:
                raise UsageError(f"--transfer_from={path}: another network is called {name} too")
    problems.raise_all()


def _of_no_use(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line on each option of `run` that was given and changes nothing."""
    usual = {name: one.default for name, one in inspect.signature(run).parameters.items()}
    chosen = "--attacks" if given["attacks"] else f"--suite={given['suite']}"
    parts = {*(() if given["attacks"] else SUITES[given["suite"]])}
    for name, serves in _SERVE.items():
        if given[name] != usual[name] and not serves & parts:
            yield f"--{name}={given[name]} is of no use with {chosen}"


def _specs(
    config: Config,
    suite: str,
    version: str,
    made: Mapping[str, list[Spec]],
    listed: Sequence[str],
) -> list[Spec]:
    """Return the attacks of a suite; ``made`` has the parts that depend on the network.

    AutoAttack's attacks that are ``listed`` take the place of the suite.
    """
    if listed:
        return [custom_spec(config, listed)]
    threat_model = {"norm": config.evaluation.norm, "epsilon": config.evaluation.epsilon}
    attacks = paper.specs(config)
    name = AUTOATTACK if version == "standard" else f"{AUTOATTACK}_{version}"
    diagnostics = threat_model | {"num_steps": 100}  # gradient steps of APGD
    parts = {
        "natural": attacks[:1],
        "paper": attacks,
        "apgd": [custom_spec(config, [attack], name) for name, attack in APGD.items()],
        "autoattack": [Spec(name, threat_model | {"version": version}, run_autoattack)],
        "diagnostics": [Spec(DIAGNOSTICS, diagnostics, run_diagnostics, searches=False)],
        "released": released.specs(config) if "released" in SUITES[suite] else [],
        **made,
    }
    return [spec for part in SUITES[suite] for spec in parts[part]]


def custom_spec(config: Config, attacks: Sequence[str], name: str = "") -> Spec:
    """Return a list of AutoAttack's attacks, by default under a name that no version of it has."""
    settings = {"norm": config.evaluation.norm, "epsilon": config.evaluation.epsilon}
    settings |= {"version": "custom", "attacks_to_run": list(attacks)}
    name = name or re.sub(r"\W+", "_", "_".join(["custom", *attacks]))
    return Spec(name, settings, run_autoattack)


def load_sources(paths: Sequence[str], dataset: Dataset, mesh: Mesh) -> list[Source]:
    """Load other networks for the data set's images and classes, of any method and kind."""
    sources = []
    for path in paths:
        model = load_network(path, mesh, fields=("--transfer_from", "--weights"))
        if (model.image_shape, len(model.classes)) != (dataset.image_shape, dataset.num_classes):
            raise UsageError(
                f"--transfer_from={path}: is a network for images of shape {model.image_shape} and "
                f"{len(model.classes)} classes; must be {dataset.image_shape} and "
                f"{dataset.num_classes}"
            )
        info = model.info
        identity = {"fingerprint": info["fingerprint"]}
        if not is_file(path):
            identity |= {"method": info["config"]["name"], "step": info["step"]}
        sources.append(Source(_name_of(path), identity, model.outputs))
    return sources


def _name_of(path: str) -> str:
    resolved = as_path(path).resolve()
    return resolved.stem if is_file(path) else resolved.name


def define_flags() -> None:
    """Define a flag for each parameter of ``run``, whose docstring has the help texts."""
    options.define(run, _CHOICES)
    backend.define_process_flags()


def main(arguments: flags.FlagValues) -> None:
    """Run the command."""
    given = options.read(run, arguments)
    directory_path(given["workdir"], "--workdir")
    backend.set_up(arguments)
    backend.use_a_device_per_core()
    backend.join_processes(arguments)
    with multihost.ending_together():
        found = run(**given)
        if sharding.is_main():
            found.print()
