"""Evaluates a trained network: ``python -m ancra_jax.evaluate --workdir=DIR --suite=paper``.

Interrupted, the same command continues; a finished result is never overwritten without ``--force``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from ancra_jax import (
    autoattack_suite,
    cli,
    components,
    diagnostics_suite,
    paper_suite,
    sharding,
)
from ancra_jax import workdir as workdir_lib
from ancra_jax.checkpoint import Checkpoints
from ancra_jax.config import Config
from ancra_jax.errors import UsageError
from ancra_jax.progress import Bar
from ancra_jax.results import ResultStore, read_arrays, read_result

SUITES = ("quick", "paper", "autoattack", "diagnostics")


def evaluate(
    workdir: str,
    *,
    checkpoint: str = "best",
    num_examples: int = 0,
    batch_size: int = 0,
    seed: int = 0,
    force: bool = False,
    suite: str = "paper",
    autoattack_version: str = "standard",
) -> list[dict[str, Any]]:
    """Runs a suite on a checkpoint; results that are there already are kept.

    Args:
      workdir: of a run.
      checkpoint: ``'best'`` on the selection split, or ``'last'``.
      num_examples: the first so many of the test split; 0 for all.
      batch_size: examples on the devices at a time; 0 for the training batch size.
      seed: of the attacks' randomness.
      force: compute again what is there.
      suite: ``'paper'`` (FGSM, PGD and C&W, without and with p, and AutoAttack), ``'autoattack'``
        alone, ``'quick'``: the paper's without AutoAttack, or ``'diagnostics'``, which compare the
        results that are there.
      autoattack_version: ``'standard'`` or ``'plus'``.

    Returns:
      The results, as their JSON files hold them.

    Raises:
      UsageError: a setting or the directory cannot be used.
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
    variables, step = load_variables(workdir, model, dataset.image_shape, checkpoint, mesh)
    target = paper_suite.Target(
        jax.tree_util.Partial(model.apply, variables),
        test,
        batch_size,
        sharding.batch_sharded(mesh),
    )
    store = ResultStore(workdir, checkpoint)
    results = []
    # An attack that computes in less than float32 finds less.
    with jax.default_matmul_precision("highest"):
        for spec in attacks_of_suite(suite, config, autoattack_version):
            identity = {
                "attack": spec.name,
                "method": config.name,
                "data": dataset.title,
                "data_fingerprint": dataset.fingerprint,
                "checkpoint": checkpoint,
                "step": step,
                "num_examples": num_examples,
                "seed": seed,
                "settings": spec.settings,
            }
            if store.finished(identity, force=force) is None:
                with Bar(spec.name, num_examples) as bar:
                    spec.run(target, identity, store, bar)
            results.append(read_result(store.path(spec.name)))
    return results


def attacks_of_suite(suite: str, config: Config, autoattack_version: str) -> list[Any]:
    """The attacks of a suite, in the order in which they run: the cheap ones first."""
    autoattack = autoattack_suite.spec(config.evaluation, autoattack_version)
    if suite == "autoattack":
        return [autoattack]
    if suite == "diagnostics":
        return [diagnostics_suite.spec(config.evaluation)]
    paper = paper_suite.specs(
        config.evaluation, config.method.aux_weight, config.model.reverse_attention
    )
    return paper if suite == "quick" else [*paper, autoattack]


def load_variables(workdir: str, model, image_shape, checkpoint: str, mesh):
    """Parameters and batch statistics of a run's best or last checkpoint, and its step.

    Raises:
      UsageError: there is no such checkpoint, it is damaged, or of another network.
    """
    checkpoints = Checkpoints(f"{workdir}/checkpoints", read_only=True)
    steps = checkpoints.steps()
    step = checkpoints.best_step() if checkpoint == "best" else max(steps, default=None)
    if step is None:
        raise UsageError(f"--workdir={workdir}: has no {checkpoint} checkpoint yet; train first")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    abstract = sharding.abstract_on(
        {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})},
        sharding.replicated(mesh),
    )
    variables, _ = checkpoints.restore(step, abstract)
    return variables, step


def print_table(config: Config, results: list[dict[str, Any]], store: ResultStore):
    """Prints the worst case first, then every attack, then what should make a reader wary."""
    console = Console(highlight=False)
    for result in results:
        if result["attack"] == diagnostics_suite.NAME:
            print_diagnosis(console, result)
    results = [result for result in results if "accuracy" in result]
    if not results:
        return
    accuracy = {result["attack"]: result["accuracy"] for result in results}
    survivors = np.logical_and.reduce(
        [read_arrays(store.path(name).with_suffix(".npz"))["correct"] for name in accuracy]
    )
    first = results[0]
    console.print(
        f"\n{first['method']} on {first['data']}, {first['checkpoint']} checkpoint (step "
        f"{first['step']}), {first['num_examples']} test examples, "
        f"{config.evaluation.norm} epsilon {config.evaluation.epsilon:.4g}"
    )
    console.print(
        f"[bold]robust accuracy: {survivors.mean():.2%}[/bold] "
        "(correct on the natural image and under every attack below)"
    )
    table = Table("attack", "without p", "with p")
    for name in accuracy:
        if not name.endswith("_with_p"):
            with_p = accuracy.get(f"{name}_with_p")
            table.add_row(name, f"{accuracy[name]:.2%}", "" if with_p is None else f"{with_p:.2%}")
    if {"natural", "autoattack"} <= set(accuracy):
        without_p, with_p = paper_mean(accuracy, ""), paper_mean(accuracy, "_with_p")
        table.add_row("mean", f"{without_p:.2%}", "" if with_p is None else f"{with_p:.2%}")
    console.print(table)
    warnings = fooled_attacks(accuracy) + [w for r in results for w in r.get("warnings", [])]
    for warning in warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", soft_wrap=True)


def print_diagnosis(console: Console, result: dict[str, Any]):
    """Prints the verdict, every check, and what the checks that fired mean."""
    console.print(
        f"\n{result['method']} on {result['data']}, {result['checkpoint']} checkpoint (step "
        f"{result['step']}), {result['num_examples']} test examples"
    )
    console.print(f"[bold]diagnosis: {result['verdict']}[/bold]")
    table = Table("check", "value", "fires if", "finding")
    for line in diagnostics_suite.table_rows(result):
        table.add_row(*line)
    console.print(table)
    for row in diagnostics_suite.rows_in(result):
        if row.fired:
            console.print(f"[yellow]{row.name}:[/yellow] {row.meaning}", soft_wrap=True)


def paper_mean(accuracy: dict[str, float], suffix: str) -> float | None:
    """The paper's mean over FGSM, PGD, C&W (without or with p) and AutoAttack; None if not run."""
    names = [
        name
        for name in accuracy
        if name.startswith(("fgsm", "pgd", "cw")) and name.endswith("_with_p") == bool(suffix)
    ]
    if not names:
        return None
    return sum(accuracy[name] for name in [*names, "autoattack"]) / (len(names) + 1)


def fooled_attacks(accuracy: dict[str, float]) -> list[str]:
    """A warning for every attack that leaves more accuracy than there is without an attack."""
    return [
        f"{name} leaves {value:.2%}, more than the natural accuracy {accuracy['natural']:.2%}: "
        "an attack that works cannot do that; the network hides its gradient from it"
        for name, value in accuracy.items()
        if value > accuracy.get("natural", 1.0)
    ]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def define_flags():
    """The command's flags; not defined on import, so that a notebook can import every command."""
    flags.DEFINE_string("workdir", None, "Directory of a run of ancra_jax.train.")
    flags.DEFINE_enum("suite", "paper", SUITES, "Which attacks.")
    flags.DEFINE_enum(
        "autoattack_version", "standard", ["standard", "plus"], "Which list of attacks."
    )
    flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "Which checkpoint.")
    flags.DEFINE_integer(
        "num_examples", 0, "Evaluate the first N test examples; 0: all.", lower_bound=0
    )
    flags.DEFINE_integer(
        "batch_size", 0, "Examples at a time; 0: the training batch size.", lower_bound=0
    )
    flags.DEFINE_integer("seed", 0, "Seed of the attacks' randomness.", lower_bound=0)
    flags.DEFINE_bool("force", False, "Compute again and replace finished results.")


def main(arguments: flags.FlagValues):
    """The command."""
    if not arguments.workdir:
        raise UsageError("--workdir is missing: the directory of a trained run")
    results = evaluate(
        arguments.workdir,
        checkpoint=arguments.checkpoint,
        num_examples=arguments.num_examples,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        force=arguments.force,
        suite=arguments.suite,
        autoattack_version=arguments.autoattack_version,
    )
    config = workdir_lib.read_config(arguments.workdir)
    print_table(config, results, ResultStore(arguments.workdir, arguments.checkpoint))


if __name__ == "__main__":
    cli.run(main, define_flags)
