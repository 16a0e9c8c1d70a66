"""How an evaluation tells where it stands."""

import sys
from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class AttackResult(NamedTuple):
    """Per-example result of one attack.

    Attributes:
      images: an adversarial image where ``success``, the natural image elsewhere.
      success: whether the attack found a misclassified image inside the threat model.
      best_loss: the largest value of the ascended objective (for FAB: minus the smallest norm of a
        misclassified image, ``-inf`` without one).
      queries: forward passes spent on the example.
    """

    images: Float[Array, "batch height width channels"]
    success: Bool[Array, "batch"]
    best_loss: Float[Array, "batch"]
    queries: Int[Array, "batch"]


ROBUST, CLEAN = "", "clean"


class Progress(NamedTuple):
    """Where an evaluation stands, after every batch.

    Attributes:
      attack: name of the attack; 'clean' while clean images are classified.
      round: number of its pass (restart or target) among ``rounds``, from 1.
      rounds: how many passes it has.
      done: examples that this pass has treated.
      todo: examples that it treats in all.
      robust_accuracy: share of all examples that nothing has broken so far.
      seconds: since the call.
      remaining: an estimate of the seconds that are left, at the pace so far; too long rather than
        too short, since examples that are broken meanwhile are not attacked again. None while clean
        images are classified.
    """

    attack: str
    round: int
    rounds: int
    done: int
    todo: int
    robust_accuracy: float
    seconds: float
    remaining: float | None = None


def print_progress(progress: Progress) -> None:
    """Writes progress to stderr: one line that is rewritten, or one line per pass in a log."""
    last = progress.done == progress.todo
    live = sys.stderr.isatty()
    if not (live or last):
        return
    line = (
        f"{progress.attack} {progress.round}/{progress.rounds}: "
        f"{progress.done}/{progress.todo} attacked, "
        f"robust accuracy {progress.robust_accuracy:.2%}, {progress.seconds:.1f} s"
    )
    if progress.remaining:
        line += f", {progress.remaining:.0f} s left"
    print(f"\r{line:<78}" if live else line, end="\n" if last else "", file=sys.stderr, flush=True)
