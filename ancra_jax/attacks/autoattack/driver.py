"""The course of an AutoAttack evaluation: attacks, their passes, their batches."""

import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from ancra_jax.attacks.autoattack.checks import check_start
from ancra_jax.attacks.autoattack.ensemble import Attack
from ancra_jax.attacks.autoattack.state import BROKEN, WITHSTOOD, State, Store
from ancra_jax.attacks.job import Job
from ancra_jax.attacks.model import example_keys
from ancra_jax.attacks.success import judge
from ancra_jax.attacks.types import CLEAN, Progress
from ancra_jax.attacks.validation import check_labels, check_logits, forward


def run(
    job: Job,
    attacks: Sequence[Attack],
    state: State,
    store: Store,
    progress: Callable[[Progress], None] | None,
    max_seconds: float | int | None = None,
) -> None:
    """Runs what ``state`` has still to do, and brings it to its end, or as far as time allows.

    Raises:
      ValueError: clean logits that are not finite, or labels beyond the model's classes.
    """
    started = time.monotonic()
    pace = Pace(attacks)

    def report(name, rounds, remaining=None):
        store.save(state)
        if progress is not None:
            event = Progress(
                attack=name,
                round=state.round + 1,
                rounds=rounds,
                done=state.tackled - int(state.todo.sum()),
                todo=state.tackled,
                robust_accuracy=float(state.robust.mean()),
                seconds=time.monotonic() - started,
                remaining=remaining,
            )
            progress(event)

    if state.attack < 0:
        for rows, active in job.placement.batches(np.flatnonzero(state.todo)):
            _classify(job, state, rows, active)
            report(CLEAN, 1)
        state.end_attack()
    while state.attack < len(attacks):
        attack = attacks[state.attack]
        rounds = attack.num_passes(state.targets.shape[1])
        for rows, active in job.placement.batches(np.flatnonzero(state.todo)):
            if max_seconds is not None and time.monotonic() - started >= max_seconds:
                store.save(state)
                return
            begun = time.monotonic()
            _attack(job, attack, state, store, rows, active)
            pace.took(time.monotonic() - begun, attack, int(active.sum()))
            report(attack.name, rounds, pace.remaining(state))
        if state.round + 1 < rounds:
            state.end_round()
        else:
            state.end_attack()
    store.save(state)


class Pace:
    """Seconds per forward pass so far, and what this makes of the work that is left."""

    def __init__(self, attacks: Sequence[Attack]):
        self._attacks = attacks
        self._seconds, self._cost = 0.0, 0.0

    def took(self, seconds: float, attack: Attack, examples: int) -> None:
        """Notes a batch."""
        self._seconds += seconds
        self._cost += examples * attack.cost

    def remaining(self, state: State) -> float:
        """Seconds for the rest of this pass, of this attack, and for the later attacks."""
        targets = state.targets.shape[1]
        now, attack = state.attack, self._attacks[state.attack]
        unbroken = int((state.standing(now) & (state.outcomes[now] != BROKEN)).sum())
        passes_left = attack.num_passes(targets) - state.round - 1
        cost = attack.cost * (int(state.todo.sum()) + passes_left * unbroken)
        for number, later in enumerate(self._attacks[now + 1 :], start=now + 1):
            standing = int(state.standing(number).sum())
            cost += standing * later.cost * later.num_passes(targets)
        return self._seconds / max(self._cost, 1.0) * cost


def _classify(job, state, rows, active):
    """Classifies clean images, ranks their classes, and looks at their gradients."""
    x, y, indices = job.batch(rows)
    model = job.judged_model(CLEAN, 0, indices)
    logits = np.asarray(forward(model, x))[active]
    rows = rows[active]
    check_logits(logits, len(rows))
    check_labels(job.labels[rows], len(rows), logits.shape[1])
    correct = logits.argmax(axis=1) == job.labels[rows]
    scores = logits if job.rank_by is None else np.array(forward(job.rank_by, x))[active]
    others = np.where(np.arange(scores.shape[1]) == job.labels[rows, None], -np.inf, scores)
    ranked = np.argsort(-others, axis=1, kind="stable")
    state.targets[rows] = ranked[:, : state.targets.shape[1]]
    state.robust[rows] = correct
    state.broken_by[rows[~correct]] = CLEAN
    if job.check_gradients:
        keys = example_keys(job.purpose_key("check"), indices)
        zero, not_finite = jax.device_get(
            check_start(model, x, y, keys, job.threat_model, job.num_steps)
        )
        state.zero_gradient[rows] = zero[active]
        state.not_finite[rows] = not_finite[active]
    state.queries[rows] += 1
    state.todo[rows] = False


def _attack(job, attack, state, store, rows, active):
    """Runs one pass of an attack on one batch and records what a fresh forward pass confirms."""
    x, y, indices = job.batch(rows)
    options = dict(attack.options)
    if attack.targeted:
        options["targets"] = job.placement.place(state.targets[rows, state.round])
    found = attack.run(
        job.model,
        x,
        y,
        job.threat_model,
        key=job.purpose_key(attack.name, state.round),
        indices=indices,
        active=job.placement.place(active),
        **options,
    )
    model = job.judged_model(attack.name, state.round, indices)
    adversarial, norms = judge(model, found.images, x, y, job.threat_model)
    adversarial, norms, loss, queries = jax.device_get(
        (adversarial, norms, found.best_loss, found.queries)
    )
    broken = adversarial & active
    state.outcomes[state.attack, rows[active]] = np.where(broken[active], BROKEN, WITHSTOOD)
    newly = broken & state.robust[rows]
    if newly.any():
        store.write(rows[newly], np.asarray(found.images)[newly])
    state.robust[rows[newly]] = False
    state.broken_by[rows[newly]] = attack.name
    if attack.targeted:
        state.target[rows[newly]] = state.targets[rows[newly], state.round]
    state.norms[rows[newly]] = norms[newly]
    state.queries[rows[active]] += queries[active] + 1
    state.not_finite[rows[active]] |= np.isnan(loss[active])
    state.todo[rows[active]] = False
