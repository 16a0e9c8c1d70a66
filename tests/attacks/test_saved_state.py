"""Which evaluation a saved state belongs to."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ancra_jax import attacks
from ancra_jax.attacks.saved_state import digest
from tests.support import attacked
from tests.support.processes import run_python

MODEL, IMAGES, LABELS = attacked.problem(batch=4, shape=(4, 4, 2))
OTHER, *_ = attacked.problem(batch=4, shape=(4, 4, 2), seed=1)
given = (MODEL, IMAGES, LABELS)
common = {"epsilon": 0.02, "progress": None, "max_seconds": 0}
custom = partial(attacks.autoattack, *given, version="custom", checks=False, num_steps=2, **common)
own = attacks.Attack("mine", attacks.fgsm)
BUDGET = attacks.AdaptiveBudget(2, 1, 1, 3, exhaustive=False)
adaptive = partial(attacks.adaptive, *given, budget=BUDGET, **common)


def defended(forward, **more):
    surrogate = attacks.Surrogate("twin", forward, losses=("ce", "targeted_margin"))
    return [attacks.Defence("d", [surrogate], **more)]


@pytest.mark.parametrize(
    ("evaluate", "settings", "change"),
    [
        (custom, {"attacks_to_run": [own]}, [attacks.Attack("mine", attacks.square)]),
        (
            custom,
            {"attacks_to_run": [attacks.Attack("mine", attacks.fgsm, options={"loss": MODEL})]},
            [attacks.Attack("mine", attacks.fgsm, options={"loss": OTHER})],
        ),
        (custom, {"attacks_to_run": ["square"], "matmul_precision": "bfloat16"}, "highest"),
        (custom, {"attacks_to_run": ["apgd-t"], "rank_by": MODEL}, OTHER),
        (adaptive, {"transfer_from": {"other": OTHER}}, {"other": MODEL}),
        (adaptive, {"defences": defended(MODEL)}, defended(OTHER)),
        (adaptive, {"defences": defended(MODEL)}, defended(Partial(attacked.linear, *OTHER.args))),
        (adaptive, {"defences": defended(MODEL, rank_by=MODEL)}, defended(MODEL, rank_by=OTHER)),
    ],
)
def test_a_state_of_other_attacks_or_precisions_is_refused(tmp_path, evaluate, settings, change):
    for _ in range(2):
        evaluate(**settings, state_path=tmp_path)
    changed = next(reversed(settings))
    with pytest.raises(ValueError, match=f"state_path={tmp_path} .* attacks or settings"):
        evaluate(**settings | {changed: change}, state_path=tmp_path)


def test_the_digest_is_of_values_and_names():
    arrays = {"b": np.ones(2), "a": jnp.zeros(2)}
    assert digest(Partial(attacked.linear, arrays)) == digest(Partial(attacked.linear, arrays))
    values = [
        arrays, {**arrays, "a": jnp.ones(2)}, {**arrays, "a": np.zeros(2, np.float16)},
        attacked.linear, attacked.tanh_network, Partial(attacked.linear), 1, 2, 1.0, "1", None,
        jax.random.key(0), jax.random.key(1), attacks.Linf(0.1), attacks.L2(0.1), Ellipsis,
        attacks.Surrogate("a", MODEL), attacks.Surrogate("b", MODEL), attacks.Surrogate("a", OTHER),
        partial(attacks.fgsm, loss="ce"), partial(attacks.fgsm, loss="dlr"), MODEL.func.__call__,
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)


def test_the_digest_is_the_same_in_every_process():
    module = "tests.attacks.test_saved_state"
    values = "(t.custom, t.adaptive, t.defended(t.MODEL), t.given, t.digest)"
    code = f"import {module} as t; print(t.digest({values}))"
    assert run_python(code).split() == run_python(code).split() != []
