"""The networks that come with the package, and what their model card says."""

import json
import re

import jax
import numpy as np
import pytest

import ancra_jax
from ancra_jax import attacks
from ancra_jax.errors import UsageError
from ancra_jax.results.statistics import wilson_interval
from ancra_jax.run.trained import PRETRAINED, pretrained
from tests.support import ROOT

CARD = (PRETRAINED / "README.md").read_text()
NAMES = ["cifar10-trades-w8", "cifar10-trades-ancra-w8"]  # in the order of the card
SHOWN = {  # by what the card calls them, the results of a row
    "Natural accuracy, %": "natural",
    "PGD-40 on the final logits, %": "pgd40",
    "AutoAttack (standard), %": "autoattack",
    "PGD-40 on the auxiliary heads too, %": "pgd40_with_p",
    "Adaptive attacks (`quick`), %": "adaptive",
}


def lines_of_the_card():
    lines = (line.strip("|").split("|") for line in CARD.splitlines() if line.startswith("|"))
    return {
        name.replace("*", "").strip(): [cell.strip() for cell in cells] for name, *cells in lines
    }


def row_of(column):
    name = re.search(r"\((.*)\)", lines_of_the_card()["Published row"][column]).group(1)
    return json.loads((PRETRAINED / name).read_text())


def test_the_card_is_of_all_networks():
    assert [cell.strip("`") for cell in lines_of_the_card()[""]] == NAMES
    assert pretrained() == sorted(NAMES)


@pytest.mark.parametrize("column", [0, 1])
def test_networks_are_those_of_published_rows(column):
    row, model = row_of(column), ancra_jax.load(NAMES[column])
    config = model.info["config"]
    assert (config["name"], config["seed"]) == (row["method"], row["seed"])
    assert model.info["data"] == row["data_fingerprint"] and model.info["step"] == row["step"]
    assert (model.norm, model.epsilon) == (row["norm"], row["epsilon"])
    for name, value in row["overrides"].items():
        setting = config
        for part in name.split("."):
            setting = setting[part]
        assert setting == value, name
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"]))
    assert f"{parameters:,} parameters" in CARD
    assert bool(model.defences) == model.architecture.reverse_attention == bool(column)


@pytest.mark.parametrize("column", [0, 1])
def test_the_card_has_the_numbers_of_the_rows(column):
    row, lines = row_of(column), lines_of_the_card()
    for title, attack in SHOWN.items():
        if lines[title][column] != "—":
            assert lines[title][column] == f"{100 * row['attacks'][attack]['accuracy']:.1f}"
    worst = row["worst_case"]
    count, total = worst["num_correct"], worst["num_examples"]
    low, high = wilson_interval(count, total)
    expected = f"**{100 * count / total:.1f}** [{100 * low:.1f}, {100 * high:.1f}]"
    assert lines["Worst case, %"][column] == expected


def test_a_network_of_the_package_is_attacked():
    model = ancra_jax.load("cifar10-trades-w8")
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    labels = model(images).argmax(-1)
    result = attacks.pgd(model, images, labels, attacks.Linf(0.5), step_size=0.1, num_steps=3)
    assert result.success.any()


def test_names_are_found_last_and_typing_errors_told(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"cifar10-trade-w8.*'cifar10-trades-w8'"):
        ancra_jax.load("cifar10-trade-w8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAMES[0]).write_bytes(b"one's own")
    with pytest.raises(UsageError, match=NAMES[0]):
        ancra_jax.load(NAMES[0])


def test_the_card_links_to_files_that_there_are():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", CARD):
        assert (PRETRAINED / target).resolve().is_relative_to(ROOT)
        assert (PRETRAINED / target).exists(), target
