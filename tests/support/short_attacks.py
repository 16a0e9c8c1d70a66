"""Evaluations that take seconds: attacks and diagnostics with next to no steps."""

import contextlib
from collections.abc import Iterator

import pytest

from ancra_jax import attacks
from ancra_jax.attacks.adaptive import BUDGETS
from ancra_jax.attacks.diagnostics import measurements
from ancra_jax.evaluate import sequences

TINY = attacks.AdaptiveBudget(
    num_steps=2, num_targets=1, num_restarts=1, num_queries=4, exhaustive=False
)


@contextlib.contextmanager
def short_attacks() -> Iterator[None]:
    """Shortens what the evaluations in the context run."""
    full = sequences.autoattack

    def few_attacks(*args, version, **options):
        if version != "custom":
            options["attacks_to_run"] = ["apgd-ce", "square"]
        return full(*args, **options, version="custom", num_steps=2, num_queries=4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "autoattack", few_attacks)
        patch.setitem(BUDGETS, "quick", TINY)
        few = {"QUERIES": 10, "TARGETS": 1, "NOISE_DRAWS": 3, "LANDSCAPE_POINTS": 3}
        for name, number in few.items():
            patch.setattr(measurements, name, number)
        yield
