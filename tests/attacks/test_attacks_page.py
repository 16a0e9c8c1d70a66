"""Runs the examples of docs/attacks.md."""

import re
from pathlib import Path

import pytest

from ancra_jax import attacks
from ancra_jax.attacks.adaptive import BUDGETS

PAGE = Path(__file__).parents[2] / "docs" / "attacks.md"
NEED_A_NETWORK = ("One attack alone", "A defence that no gradient passes", "Diagnostics")
NEEDS = {"Equinox": "equinox", "Haiku": "haiku"}


def sections():
    """Heading and code of every section with code; the introduction's heading is ''."""
    for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE):
        heading = "" if part.startswith("# ") else part.splitlines()[0]
        code = "\n".join(re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL))
        if code:
            yield heading, code


CODE = dict(sections())


def test_the_page_has_its_examples():
    assert {"", "Flax NNX", "Flax Linen", "Equinox", "Haiku", "Randomised models"} <= set(CODE)


@pytest.mark.parametrize("heading", [heading for heading in CODE if heading])
def test_example(heading, monkeypatch):
    if heading in NEEDS:
        pytest.importorskip(NEEDS[heading])
    settings = {"epsilon": 8 / 255, "num_steps": 2, "num_queries": 3, "n_target_classes": 2}
    monkeypatch.setitem(BUDGETS, "standard", attacks.AdaptiveBudget(2, 2, 1, 3, True))
    names = {"settings": settings | {"progress": None}}
    exec(CODE[""], names)
    if heading in NEED_A_NETWORK:
        exec(CODE["Flax NNX"], names)
    exec(CODE[heading], names)
    if heading == "Diagnostics":
        assert names["diagnosis"].verdict in ("trustworthy", "suspicious", "masked")
    result = names["result"]
    assert 0 <= result.robust_accuracy <= result.clean_accuracy
    assert result.images.shape == (6, 8, 8, 3)
    assert not any("randomised" in line for line in result.warnings)
