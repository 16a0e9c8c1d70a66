"""Evaluates a trained network: ``python -m ancra_jax.evaluate --workdir=DIR --suite=paper``.

Interrupted, the same command continues; a finished result is never overwritten without ``--force``.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from ancra_jax.attacks.adaptive.surrogates import LEVELS, Level, declared
from ancra_jax.attacks.saved_state import StateError
from ancra_jax.cli.backend import use_a_device_per_core
from ancra_jax.cli.progress import Bar
from ancra_jax.config.schema import WEIGHTS, Config
from ancra_jax.data import Dataset
from ancra_jax.errors import UsageError
from ancra_jax.evaluate import adaptive as adaptive_suite
from ancra_jax.evaluate import autoattack as autoattack_suite
from ancra_jax.evaluate import diagnostics as diagnostics_suite
from ancra_jax.evaluate import paper as paper_suite
from ancra_jax.evaluate.summary import print_table
from ancra_jax.results.store import ResultStore, evaluation_name, read_result
from ancra_jax.run import build as components
from ancra_jax.run import sharding
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.weights import load_weights

SUITES = ("quick", "paper", "autoattack", "adaptive", "diagnostics", "all")


def evaluate(
    workdir: str,
    *,
    checkpoint: str = "best",
    weights: str = "raw",
    num_examples: int = 0,
    batch_size: int = 0,
    seed: int = 0,
    force: bool = False,
    suite: str = "paper",
    autoattack_version: str = "standard",
    adaptive_budget: Level = "standard",
    max_minutes: float = 0.0,
    transfer_from: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Runs a suite on a checkpoint; results that are there already are kept.

    Args:
      workdir: of a run.
      checkpoint: ``'best'`` on the selection split, or ``'last'``.
      weights: ``'raw'``, or an average that the run keeps: ``'ema'``, ``'swa'``.
      num_examples: the first so many of the test split; 0 for all.
      batch_size: most examples on the devices at a time; 0 for the training batch size. AutoAttack
        and the adaptive attacks take at most 32 on a CPU, 256 elsewhere.
      seed: of the attacks' randomness.
      force: compute again what is there.
      suite: see ``attacks_of_suite``.
      autoattack_version: ``'standard'`` or ``'plus'``.
      adaptive_budget: ``'quick'``, ``'standard'`` or ``'thorough'``.
      max_minutes: stop the adaptive attacks after so many; 0: no limit. The same call goes on.
      transfer_from: directories of runs whose adversarial images the adaptive attacks try.

    Returns:
      The results, as their JSON files hold them.

    Raises:
      UsageError: a setting, the directory, or what an interrupted call left there cannot be used.
    """
    config = workdir_lib.read_config(workdir)
    dataset = components.load_dataset(config.data)
    test = dataset.test
    num_examples = num_examples or len(test)
    if num_examples > len(test):
        raise UsageError(f"--num_examples={num_examples}: the test split has {len(test)} examples")
    mesh = sharding.create_mesh()
    batch_size = _round_up(min(batch_size or config.batch_size, num_examples), mesh.size)
    model = components.create_model(config, dataset.num_classes, dtype="float32")
    variables, step, _ = load_weights(
        workdir, model, dataset.image_shape, mesh, checkpoint=checkpoint, weights=weights
    )
    target = paper_suite.Target(
        jax.tree_util.Partial(model.apply, variables),
        test,
        batch_size,
        sharding.batch_sharded(mesh),
    )
    adaptive = functools.partial(
        adaptive_suite.AdaptiveSpec,
        adaptive_suite.NAME,
        config.evaluation.norm,
        config.evaluation.epsilon,
        adaptive_budget,
        max_minutes,
        declared(model, target.predict),
        load_sources(transfer_from, dataset, mesh),
    )
    name = evaluation_name(checkpoint, weights)
    store = ResultStore(workdir, name)
    results = []
    # An attack that computes in less than float32 finds less.
    with jax.default_matmul_precision("highest"):
        for spec in attacks_of_suite(suite, config, autoattack_version, adaptive):
            identity = {
                "attack": spec.name,
                "method": config.name,
                "data": dataset.title,
                "data_fingerprint": dataset.fingerprint,
                "checkpoint": name,
                "step": step,
                "num_examples": num_examples,
                "seed": seed,
                "settings": spec.settings,
            }
            if store.finished(identity, force=force) is None:
                try:
                    with Bar(spec.name, num_examples) as bar:
                        spec.run(target, identity, store, bar)
                except StateError as error:
                    raise UsageError(str(error)) from error
            results.append(read_result(store.path(spec.name)))
    return results


def attacks_of_suite(
    suite: str, config: Config, autoattack_version: str, adaptive: Callable[[], Any]
) -> list[Any]:
    """The attacks of a suite, in the order in which they run: the cheap ones first.

    Args:
      suite: ``'quick'``: natural images, FGSM, PGD and C&W, without and with p; ``'paper'``: these
        and AutoAttack; ``'autoattack'`` alone; ``'adaptive'``: natural images, AutoAttack and the
        attacks made for the network's defence; ``'diagnostics'``, which compare the results that
        are there; ``'all'``: everything.
      config: of the run.
      autoattack_version: see there.
      adaptive: makes the adaptive attacks.
    """
    paper = paper_suite.specs(
        config.evaluation, config.method.aux_weight, config.model.reverse_attention
    )
    autoattack = autoattack_suite.spec(config.evaluation, autoattack_version)
    diagnostics = diagnostics_suite.spec(config.evaluation)
    match suite:
        case "quick":
            return paper
        case "paper":
            return [*paper, autoattack]
        case "autoattack":
            return [autoattack]
        case "adaptive":
            return [paper[0], autoattack, adaptive()]
        case "diagnostics":
            return [diagnostics]
    return [*paper, autoattack, adaptive(), diagnostics]


def load_sources(
    directories: Sequence[str], dataset: Dataset, mesh: Mesh
) -> list[adaptive_suite.Source]:
    """Loads the best checkpoints of other runs, of any method and network.

    Raises:
      UsageError: a directory holds no such run, or one of another data set.
    """
    sources: list[adaptive_suite.Source] = []
    for directory in directories:
        try:
            config = workdir_lib.read_config(directory)
            if config.data.name != dataset.name:
                raise UsageError(
                    f"--workdir={directory}: is a run on {config.data.name}, not {dataset.name}"
                )
            model = components.create_model(config, dataset.num_classes, dtype="float32")
            variables, step, _ = load_weights(directory, model, dataset.image_shape, mesh)
        except UsageError as error:
            raise UsageError(str(error).replace("--workdir", "--transfer_from", 1)) from error
        name = pathlib.Path(directory).resolve().name
        if name in [source.name for source in sources]:
            raise UsageError(f"--transfer_from={directory}: another directory is called {name} too")
        predict = jax.tree_util.Partial(model.apply, variables)
        sources.append(adaptive_suite.Source(name, config.name, step, predict))
    return sources


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def define_flags():
    """The command's flags; not defined on import, so that a notebook can import every command."""
    flags.DEFINE_string("workdir", None, "Directory of a run of ancra_jax.train.")
    flags.DEFINE_enum("suite", "paper", SUITES, "Which attacks.")
    flags.DEFINE_enum(
        "autoattack_version", "standard", ["standard", "plus"], "Which list of attacks."
    )
    flags.DEFINE_enum("adaptive_budget", "standard", LEVELS, "What the adaptive attacks may spend.")
    flags.DEFINE_float(
        "max_minutes",
        0.0,
        "Stop the adaptive attacks after so many minutes; the same command goes on. 0: no limit.",
        lower_bound=0.0,
    )
    flags.DEFINE_list(
        "transfer_from", [], "Directories of runs whose adversarial images are tried too."
    )
    flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "Which checkpoint.")
    flags.DEFINE_enum(
        "weights", "raw", WEIGHTS, "Which weights: the optimiser's, or an average of them."
    )
    flags.DEFINE_integer(
        "num_examples", 0, "Evaluate the first N test examples; 0: all.", lower_bound=0
    )
    flags.DEFINE_integer(
        "batch_size",
        0,
        "Most examples at a time; 0: the training batch size. AutoAttack and the adaptive attacks "
        "take 32 at most on a CPU, 256 elsewhere.",
        lower_bound=0,
    )
    flags.DEFINE_integer("seed", 0, "Seed of the attacks' randomness.", lower_bound=0)
    flags.DEFINE_bool("force", False, "Compute again and replace finished results.")


def main(arguments: flags.FlagValues):
    """The command."""
    if not arguments.workdir:
        raise UsageError("--workdir is missing: the directory of a trained run")
    use_a_device_per_core()
    results = evaluate(
        arguments.workdir,
        checkpoint=arguments.checkpoint,
        weights=arguments.weights,
        num_examples=arguments.num_examples,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        force=arguments.force,
        suite=arguments.suite,
        autoattack_version=arguments.autoattack_version,
        adaptive_budget=arguments.adaptive_budget,
        max_minutes=arguments.max_minutes,
        transfer_from=arguments.transfer_from,
    )
    config = workdir_lib.read_config(arguments.workdir)
    name = evaluation_name(arguments.checkpoint, arguments.weights)
    print_table(config, results, ResultStore(arguments.workdir, name))
