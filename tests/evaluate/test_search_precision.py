"""The precision of searches in the results of an evaluation: recorded, and never mixed."""

import numpy as np
import pytest

from ancra_jax.errors import UsageError
from ancra_jax.evaluate.spec import Spec
from ancra_jax.results.store import ResultStore, evaluate_commands

SPEC = Spec("pgd40", {"epsilon": 0.1}, lambda task: ({}, {}))
IDENTITY = {
    "checkpoint": "best", "step": 1, "num_examples": 2, "seed": 0, "data_fingerprint": "0",
}  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path, "best")


def finish(store, identity):
    return store.write(identity, {"correct": np.ones(2, bool)}, 1.0)


def test_results_say_in_which_precision_they_searched(store):
    result = finish(store, SPEC.record(IDENTITY, "high"))
    assert result["search_precision"] == "high"
    natural = Spec("natural", {}, SPEC.run, searches=False).record(IDENTITY, "high")
    assert "search_precision" not in natural
    records = {"natural": finish(store, natural), "pgd40": result}
    (command,) = evaluate_commands("run", "best", records)
    assert "--search_precision=high" in command


def test_what_is_there_is_kept_unless_another_precision_is_asked_for(store):
    finish(store, SPEC.record(IDENTITY, "high"))
    found = SPEC.record(IDENTITY, "auto", store)
    assert found["search_precision"] == "high" and store.finished(found)
    assert SPEC.record(IDENTITY)["search_precision"] == "highest"
    with pytest.raises(UsageError, match=r"search_precision='high'.*'highest'.*--force"):
        store.finished(SPEC.record(IDENTITY, "highest", store))


def test_results_and_states_of_before_are_of_the_highest(store):
    record = SPEC.record(IDENTITY, "highest")
    old = {name: value for name, value in record.items() if name != "search_precision"}
    assert store.partial_path(old) == store.partial_path(record)
    finish(store, old)
    assert store.finished(record) and store.finished(SPEC.record(IDENTITY, "auto", store))
    with pytest.raises(UsageError, match="search_precision='highest'"):
        store.finished(SPEC.record(IDENTITY, "high", store))


def test_an_interrupted_search_goes_on_in_its_precision(store):
    store.partial_path(SPEC.record(IDENTITY, "default")).with_suffix(".state").mkdir()
    assert SPEC.record(IDENTITY, "auto", store)["search_precision"] == "default"
    assert SPEC.record(IDENTITY, "high", store)["search_precision"] == "high"
