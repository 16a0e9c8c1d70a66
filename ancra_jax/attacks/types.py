"""What attacks return, and how an evaluation tells where it stands."""

import sys
from typing import NamedTuple

import jax
import numpy as np

from ancra_jax.ops.images import Flags, Images, Labels, Values

ROBUST, CLEAN = "", "clean"


class AttackResult(NamedTuple):
    """What one attack did to every example.

    Attributes:
      images: an adversarial image where ``success``, the natural image elsewhere.
      success: whether the attack found a misclassified image inside the threat model.
      best_loss: the largest value of the ascended objective (``fgsm`` and ``pgd``: at the last
        iterate; ``fab``: minus the smallest norm of a misclassified image, ``-inf`` without one).
        ``-inf`` where the example was not attacked.
      queries: forward passes spent on the example; 0 where it was not attacked.
    """

    images: Images
    success: Flags
    best_loss: Values
    queries: Labels

    def __repr__(self) -> str:
        """Return a summary of a few lines, without pixels."""
        images = f"{self.images.dtype}{list(self.images.shape)}"
        if isinstance(self.success, jax.core.Tracer | jax.ShapeDtypeStruct):  # no values yet
            return summary("AttackResult", images=images)
        success = f"{int(np.sum(self.success))} of {len(self.success)}"
        return summary("AttackResult", success=success, images=images)


def summary(kind: str, **lines: object) -> str:
    """Return a result's ``repr``: its kind, then one line for each thing worth saying."""
    return "\n".join([f"{kind}:", *(f"  {name}: {value}" for name, value in lines.items())])


class Progress(NamedTuple):
    """Where an evaluation stands, after every batch.

    Attributes:
      attack: name of the attack; 'clean' while natural images are classified.
      round: number of its pass (restart or target) among ``rounds``, from 1.
      rounds: how many passes it has.
      done: examples that this pass has treated.
      todo: examples that it treats in all.
      robust_accuracy: share of all examples that nothing has broken so far.
      seconds: since the call.
      remaining: an estimate of the seconds that are left, at the pace so far; too long rather than
        too short, since examples that are broken meanwhile are not attacked again. None while
        natural images are classified.
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
    """Write progress to stderr: one line that is rewritten, or one line per pass in a log."""
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
