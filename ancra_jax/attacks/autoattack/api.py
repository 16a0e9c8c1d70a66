"""AutoAttack: an ensemble of attacks whose worst case is the robust accuracy.

Every attack starts from the natural images of the examples that are still robust. Each kind of
attack is compiled once: targets, epsilon, weights and the choice of examples are arguments, and all
batches have one shape, except the last ones of long attacks on CPU (see ``Placement.batches``).

References:
  Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
  parameter-free attacks, ICML 2020.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from ancra_jax.attacks.arguments import AnyKey, Number, as_flag
from ancra_jax.attacks.autoattack.checks import check_rank_by, check_start, model_warnings
from ancra_jax.attacks.autoattack.ensemble import Attack, Budget, loss_along_dlr, plan
from ancra_jax.attacks.autoattack.result import (
    BROKEN,
    WITHSTOOD,
    AutoAttackResult,
    State,
    Store,
    fingerprints,
    log_line,
)
from ancra_jax.attacks.job import (
    CLEAN,
    Batch,
    HostImages,
    Job,
    Progress,
    checked_outputs,
    checked_path,
    print_progress,
)
from ancra_jax.attacks.model import Model, as_pytree, forward
from ancra_jax.attacks.objectives import TARGETED_LOSSES
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.saved_state import append_line
from ancra_jax.attacks.square import square
from ancra_jax.attacks.threat_models import ThreatModel, ball_of, norm_of
from ancra_jax.ops.files import AnyPath, as_path
from ancra_jax.ops.images import AnyImages, AnyLabels


@explains_old_calls
def autoattack(
    model: Model,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel | None = None,
    *,
    epsilon: Number | None = None,
    norm: str | Number = "linf",
    version: str = "standard",
    attacks_to_run: Sequence[str | Attack] | None = None,
    key: AnyKey | None = None,
    indices: AnyLabels | None = None,
    batch_size: int | None = None,
    n_target_classes: int = 9,
    num_steps: int = 100,
    num_queries: int = 5000,
    randomized: bool = False,
    gradient_draws: int = 20,
    devices: Sequence[jax.Device] | None = None,
    state_path: str | os.PathLike | None = None,
    progress: Callable[[Progress], None] | None = print_progress,
    matmul_precision: str = "highest",
    search_precision: str = "auto",
    exhaustive: bool = False,
    only: str | None = None,
    rank_by: Model | None = None,
    max_seconds: float | int | None = None,
    checks: bool = True,
    log_path: str | os.PathLike | None = None,
) -> AutoAttackResult:
    """Evaluate the robust accuracy of a model by an ensemble of attacks.

    An example is broken only if a fresh forward pass misclassifies an attack's image, and this
    image is finite, in [0, 1] and in the ball (tolerance 1e-6).

    Args:
      model: see ``ancra_jax.attacks``, as are ``labels``, ``key`` and ``indices``.
      images: natural images, pixels in [0, 1]; the devices hold one batch of them at a time.
      threat_model: ``Linf``, ``L2`` or ``L1``; or in its place ``epsilon`` and ``norm``, by name.
      version: ``'standard'``, ``'plus'``, ``'rand'`` (for randomised models), or ``'custom'``.
      attacks_to_run: for ``'custom'``: names of attacks, or ``Attack`` objects, in their order. A
        name may have settings of its own: ``'apgd-ce:num_steps=50:num_restarts=3'``.
      batch_size: of the largest batch; batches are equal and few. 32 on CPU, else 256 if None.
      n_target_classes: most targets of apgd-t and fab-t, in the order of the natural logits.
      num_steps: gradient steps of APGD and FAB.
      num_queries: queries of Square.
      randomized: whether the model is called as ``model(images, key=key)``.
      gradient_draws: gradients averaged in a step on a randomised model.
      devices: that share every batch; None: those of all processes, each of which makes this call.
      state_path: directory for the state; the same call continues there, with the same results.
      progress: called after every batch.
      matmul_precision: of matrix products and convolutions; see ``jax.default_matmul_precision``.
      search_precision: of searches alone: ``'auto'``, ``'highest'``, ``'high'``, ``'default'``.
      exhaustive: whether each attack also gets what others broke; slower, but shows what it can do.
      only: the one attack of the list to run.
      rank_by: a model whose natural logits rank the targets, in place of the one under attack.
      max_seconds: start no batch of an attack after this time; the result is not ``complete`` then.
      checks: whether to look for signs that the result is too optimistic, see its ``warnings``.
      log_path: a file to which a line is appended after every attack.

    Raises:
      ValueError: bad images, labels, settings or logits, or a state of another evaluation.
    """
    exhaustive, checks = as_flag(exhaustive, "exhaustive"), as_flag(checks, "checks")
    store_path = checked_outputs(state_path, progress, matmul_precision, max_seconds, log_path)
    budget = Budget(num_steps, num_queries, gradient_draws, n_target_classes, randomized)
    with jax.default_matmul_precision(matmul_precision):
        given = (model, images, labels, indices, ball_of(threat_model, norm, epsilon), key, devices)
        job = Job.create(*given, batch_size, randomized, num_steps, search_precision)
        how = (job.num_classes, budget, norm_of(job.threat_model), exhaustive, only)
        attacks = plan(version, attacks_to_run, *how)
        check_rank_by(rank_by, job)
        warnings = [attack.note for attack in attacks if attack.note]
        warnings += model_warnings(job, version) if checks else []
        course = _Course(budget.n_target_classes, rank_by, checks, max_seconds, progress, log_path)
        state, found = _carry_out(job, attacks, course, store_path)
    return state.result(attacks, found, warnings, max_seconds, job.search_precision)


def individually(
    model: Model,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel | None = None,
    *,
    state_path: str | os.PathLike | None = None,
    **options: Any,
) -> dict[str, AutoAttackResult]:
    """Run each attack of AutoAttack alone, on all examples, and return the results by its name.

    Every result has adversarial images, their predictions, the accuracy that its attack alone
    leaves, and the time it took. ``worst_case(list(results.values()))`` unites them.

    Args:
      model: as in ``autoattack``, and so are ``images``, ``labels`` and ``threat_model``.
      state_path: directory with a state for each attack.
      options: further arguments of ``autoattack``, such as ``version`` and ``attacks_to_run``.
    """
    asked: dict[str, Any] = {name: options.get(name) for name in ("attacks_to_run", "only")}
    attacks = plan(options.get("version", "standard"), num_classes=10, budget=Budget(), **asked)
    parent = checked_path(state_path, "state_path", "a directory")
    results = {}
    for name in (attack.name for attack in attacks):
        path = None if parent is None else parent / name.replace(":", "-")
        common = options | {"only": name, "state_path": path}
        results[name] = autoattack(model, images, labels, threat_model, **common)
    return results


class _Course(NamedTuple):
    """How an evaluation takes its course: arguments of `autoattack`."""

    n_target_classes: int
    rank_by: Model | None
    checks: bool
    max_seconds: float | int | None
    progress: Callable[[Progress], None] | None
    log_path: str | os.PathLike | None


def _carry_out(
    job: Job, attacks: Sequence[Attack], course: _Course, store_path: AnyPath | None
) -> tuple[State, HostImages]:
    """Run what is left to do; return state and images. Only the first process uses the files."""
    share = job.placement.share
    if not share.is_first:
        store_path, course = None, course._replace(log_path=None)
    store = Store(store_path, job.images)
    targets = course.n_target_classes
    known = fingerprints(job, attacks, targets, course.rank_by)
    attacks = [replace(one, most_targets=one.most_targets or targets) for one in attacks]
    fresh = State.new(job, attacks, targets)
    state = share.from_first(lambda: store.resume(fresh, known))
    _run(job, attacks, state, store, course)
    return state, share.from_first(store.images)


def _run(job: Job, attacks: Sequence[Attack], state: State, store: Store, course: _Course) -> None:
    """Run what ``state`` says is left to do, to the end or as far as time allows."""
    started = time.monotonic()
    seconds, passes_spent = 0.0, 0.0  # on batches of attacks, in this call

    def report(name: str, rounds: int, remaining: float | None = None) -> None:
        store.save(state)
        if course.progress is not None:
            event = Progress(
                attack=name,
                round=state.round + 1,
                rounds=rounds,
                done=state.pass_size - int(state.todo.sum()),
                todo=state.pass_size,
                robust_accuracy=float(state.robust.mean()),
                seconds=time.monotonic() - started,
                remaining=remaining,
            )
            course.progress(event)

    if state.attack < 0:
        look = course.checks and any(attack.run is not square for attack in attacks)
        ranking = course.rank_by
        if ranking is not None:
            ranking = job.placement.replicate(as_pytree(ranking))
        for batch in job.batches(np.flatnonzero(state.todo)):
            _classify(job, state, batch, ranking, loss_along_dlr(attacks), look)
            report(CLEAN, 1)
        state.end_attack()
    while state.attack < len(attacks):
        attack = attacks[state.attack]
        rounds = attack.num_passes(state.targets.shape[1])
        for batch in job.batches(np.flatnonzero(state.todo), attack.cost * rounds):
            begun = time.monotonic()
            if course.max_seconds is not None:
                late = begun - started >= course.max_seconds
                if job.placement.share.from_first(partial(bool, late)):
                    store.save(state)
                    return
            _attack(job, attack, state, store, batch)
            spent = time.monotonic() - begun
            state.seconds[state.attack] += spent
            seconds += spent
            passes_spent += len(batch.examples) * attack.cost
            pace = seconds / max(passes_spent, 1.0)
            report(attack.name, rounds, pace * _passes_left(attacks, state))
        if state.round + 1 < rounds:
            state.end_round()
        else:
            state.end_attack()
            if course.log_path is not None:
                store.save(state)
                append_line(as_path(course.log_path), log_line(state, attack))
    store.save(state)


def _passes_left(attacks: Sequence[Attack], state: State) -> float | int:
    """Return the forward passes of the rest of this pass and attack, and of the later attacks."""
    targets = state.targets.shape[1]
    now = state.attack
    attack = attacks[now]
    unbroken = int((state.standing(now) & (state.outcomes[now] != BROKEN)).sum())
    rounds_left = attack.num_passes(targets) - state.round - 1
    passes = attack.cost * (int(state.todo.sum()) + rounds_left * unbroken)
    for number, later in enumerate(attacks[now + 1 :], start=now + 1):
        passes += int(state.standing(number).sum()) * later.cost * later.num_passes(targets)
    return passes


def _classify(
    job: Job,
    state: State,
    batch: Batch,
    ranking: Model | None,
    dlr: str | None,
    check_gradients: bool,
) -> None:
    """Classify natural images, rank their classes, and look at their gradients.

    ``dlr`` names the loss, beside the cross-entropy, whose gradients the attacks follow.
    """
    chosen = batch.examples
    count = len(chosen)
    logits = job.natural_logits(batch)
    correct = logits.argmax(axis=1) == job.labels[chosen]
    fetch = job.placement.fetch
    scores = logits if ranking is None else fetch(forward(ranking, batch.images))[:count]
    is_label = np.arange(scores.shape[1]) == job.labels[chosen, None]
    ranked = np.argsort(-np.where(is_label, -np.inf, scores), axis=1, kind="stable")
    state.targets[chosen] = ranked[:, : state.targets.shape[1]]
    state.robust[chosen] = correct
    state.predictions[chosen] = logits.argmax(axis=1)
    state.broken_by[chosen[~correct]] = CLEAN
    if check_gradients:
        with job.searching():
            zero, not_finite = fetch(check_start(job, CLEAN, "check", batch))
        state.zero_gradient[chosen] = zero[:count]
        state.not_finite[chosen] = not_finite[:count]
        if dlr is not None:
            targets = state.targets[:, 0] if dlr in TARGETED_LOSSES else None
            with job.searching():
                zero, _ = check_start(job, CLEAN, "check", batch, dlr, targets)
            state.zero_dlr_gradient[chosen] = fetch(zero)[:count]
    state.queries[chosen] += 1
    state.todo[chosen] = False


def _attack(job: Job, attack: Attack, state: State, store: Store, batch: Batch) -> None:
    """Run one pass of an attack on one batch and record what a fresh forward pass confirms."""
    chosen = batch.examples
    count = len(chosen)
    targets = state.targets[:, state.round] if attack.targeted else None
    run = partial(attack.run, **attack.options)
    found, *verdict = job.attack(run, attack.name, batch, state.round, targets)
    fetched = job.placement.fetch((*verdict, found.best_loss, found.queries, found.claimed))
    broken, norms, predictions, loss, queries, claimed = (values[:count] for values in fetched)
    state.denied[state.attack] += int((claimed & ~broken).sum())
    state.outcomes[state.attack, chosen] = np.where(broken, BROKEN, WITHSTOOD)
    newly = broken & state.robust[chosen]
    examples = chosen[newly]
    if len(examples):
        store.write(examples, job.placement.fetch(found.images)[:count][newly])
    state.robust[examples] = False
    state.broken_by[examples] = attack.name
    if targets is not None:
        state.target[examples] = targets[examples]
    state.norms[examples] = norms[newly]
    state.predictions[examples] = predictions[newly]
    state.queries[chosen] += queries + 1
    state.not_finite[chosen] |= np.isnan(loss)
    state.todo[chosen] = False
