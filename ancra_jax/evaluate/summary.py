"""What the evaluation prints."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Column, Table

from ancra_jax.attacks.diagnostics.checks import noticed_share
from ancra_jax.config.schema import Config
from ancra_jax.evaluate import adaptive as adaptive_suite
from ancra_jax.evaluate import diagnostics as diagnostics_suite
from ancra_jax.results.statistics import fooled_attacks, paper_mean
from ancra_jax.results.store import ResultStore
from ancra_jax.run.files import read_arrays

_GATE = {
    "final_is_last_mask": "share of natural images whose prediction is the last mask's class",
    "masks_agree": "share of natural images on which both masks are of one class",
    "final_is_last_mask_adversarial": "the same of adversarial images: prediction and last mask",
    "masks_agree_adversarial": "the same of adversarial images: both masks",
    "last_mask_changes": "share of adversarial images on which the last mask changes",
    "gradient_cosine": "cosine between the gradients of the final margin and of the last mask's",
}


def print_table(config: Config, results: list[dict[str, Any]], store: ResultStore):
    """Prints the worst case first, then every attack, then what should make a reader wary."""
    console = Console(highlight=False)
    accuracies = [result for result in results if "accuracy" in result]
    if accuracies:
        _print_accuracies(console, config, accuracies, store)
    for result in results:
        if result["attack"] == diagnostics_suite.NAME:
            print_diagnosis(console, result, store)


def _print_accuracies(console, config, results, store):
    accuracy = {result["attack"]: result["accuracy"] for result in results}
    correct = {
        name: read_arrays(store.path(name).with_suffix(".npz"), ["correct"])["correct"]
        for name in accuracy
    }
    survivors = np.logical_and.reduce(list(correct.values()))
    first = results[0]
    console.print(
        Panel(
            f"[bold]robust accuracy: {survivors.mean():.2%}[/bold]\n"
            "correct on the natural image and under every attack below",
            expand=False,
        )
    )
    console.print(
        f"{first['method']} on {first['data']}, {first['checkpoint']} checkpoint (step "
        f"{first['step']}), {first['num_examples']} test examples, "
        f"{config.evaluation.norm} epsilon {config.evaluation.epsilon:.4g}"
    )
    table = Table("attack", "without p", "with p")
    for name in accuracy:
        if not name.endswith("_with_p"):
            with_p = accuracy.get(f"{name}_with_p")
            table.add_row(name, f"{accuracy[name]:.2%}", "" if with_p is None else f"{with_p:.2%}")
    without_p, with_p = paper_mean(accuracy, ""), paper_mean(accuracy, "_with_p")
    if without_p is not None:
        table.add_row("mean", f"{without_p:.2%}", "" if with_p is None else f"{with_p:.2%}")
    console.print(table)
    warnings = fooled_attacks(accuracy) + [w for r in results for w in r.get("warnings", [])]
    if adaptive_suite.NAME in accuracy:
        adaptive = next(r for r in results if r["attack"] == adaptive_suite.NAME)
        _print_attacks(console, adaptive, correct)
    elif config.model.reverse_attention:
        warnings.append(
            "this network hides its gradient behind reverse attention, and no attack above was "
            "made for that: --suite=adaptive"
        )
    for warning in warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", soft_wrap=True)


def _print_attacks(
    console: Console, result: dict[str, Any], correct: Mapping[str, np.ndarray]
) -> None:
    """Prints what each adaptive attack did, and how the masks behave.

    Args:
      console: where to.
      result: of the adaptive attacks, as the result file holds it.
      correct: by attack the examples that it leaves, of all results.
    """
    table = Table(
        Column("adaptive attack", no_wrap=True),
        *("tried on", "broke", "left after it", "by it alone"),
    )
    for record in result["attacks"]:
        own = record["own_accuracy"]
        table.add_row(
            record["name"],
            str(record["attacked"]),
            str(record["broken"]),
            f"{record['accuracy_after']:.2%}",
            "" if own is None else f"{own:.2%}",
        )
    console.print(table)
    if "autoattack" in correct:
        left = correct["autoattack"]
        broken = int((left & ~correct[adaptive_suite.NAME]).sum())
        console.print(
            f"{broken} of the {int(left.sum())} examples that AutoAttack leaves are broken by "
            "adaptive attacks",
            soft_wrap=True,
        )
    for name, value in (result["gate"] or {}).items():
        if value is not None:
            console.print(f"{_GATE.get(name, name)}: {value:.2f}", soft_wrap=True)


def print_diagnosis(console: Console, result: dict[str, Any], store: ResultStore):
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
    if result["verdict"] == "trustworthy":
        share = noticed_share(result["num_examples"])
        console.print(
            f"of {result['num_examples']} examples: what concerns less than {share:.1%} of them "
            "can go unnoticed",
            soft_wrap=True,
        )
    if newer := diagnostics_suite.not_compared(store, result):
        console.print(
            f"[yellow]warning:[/yellow] made before the results of {', '.join(newer)}: --force "
            "compares them too",
            soft_wrap=True,
        )
