"""Settings that are chosen by the data, through the folder of images that they are made for."""

import dataclasses
import json

import numpy as np
import pytest

from ancra_jax import evaluate, predict, report, train
from ancra_jax.config import from_mapping, to_mapping
from ancra_jax.data import Contents
from ancra_jax.errors import Problems, UsageError
from ancra_jax.run import automatic, build, workdir
from ancra_jax.train import loop
from configs import cifar10, common, folder
from tests.support import small_runs
from tests.support.archives import encode, write_files
from tests.support.processes import run_command

CONFIG = from_mapping(folder.get_config("trades"))
CHOSEN = {  # training images, devices -> batch size, held-out examples
    (5, 1): (4, 1),
    (72, 1): (16, 9),
    (300, 1): (32, 37),
    (1000, 1): (64, 125),
    (1000, 3): (63, 125),
    (50_000, 1): (128, 1000),
    (50_000, 8): (128, 1000),
}


@pytest.mark.parametrize(("train_examples", "devices"), CHOSEN)
def test_sizes_follow_the_number_of_images(train_examples, devices):
    contents = Contents(train_examples, 10, 32)
    chosen = automatic.choose(CONFIG, contents, devices=devices)
    found = chosen.batch_size, chosen.data.selection_examples
    assert found == CHOSEN[train_examples, devices] and chosen.data.image_size == 32
    assert automatic.choose(chosen, Contents(9, 9, 64)) == chosen  # nothing is left to choose
    assert f"--config.batch_size={found[0]}" in automatic.describe(CONFIG, chosen)


@pytest.mark.parametrize(
    ("method", "settings", "contents", "period"),
    [
        ("trades", {}, Contents(50_000, 10_000), 1),  # 42 passes for 1000, 23 for 49,000
        ("natural", {}, Contents(50_000, 10_000), 6),  # 42 for 1000, 3 for 49,000: 29 %
        ("trades_ancra", {}, Contents(50_000, 10_000), 1),  # two attacks on either side
        ("trades_ra", {"selection.num_steps": 40}, Contents(50_000, 10_000), 3),  # 163 for 1000
        ("natural", {"epochs": 15}, Contents(2000, 100), 3),  # five times in a run at least
        ("natural", {"selection.every_epochs": 2}, Contents(2000, 100), 2),
    ],
)
def test_selections_cost_a_twentieth_of_the_training(method, settings, contents, period):
    given = cifar10.get_config(method)
    given.update_from_flattened_dict(settings)
    chosen = automatic.choose(from_mapping(given), contents)
    assert chosen.selection.every_epochs == period
    assert automatic.choose(from_mapping(given), contents, recorded=chosen) == chosen


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 0), (0.99, 16)])
def test_extra_data_are_a_part_of_the_batch_that_was_chosen(fraction, count):
    extra = {"extra_data__path": __file__, "extra_data__fraction": fraction}
    problems = Problems()
    build.check(small_runs.small_config(batch_size=0, **extra), problems)
    with pytest.raises(
        UsageError, match=rf"^\S+fraction={fraction}: makes {count} of the 16 \D+"
    ) as raised:
        problems.raise_all()
    assert len(raised.value.messages) == 1


def test_a_run_that_is_continued_keeps_its_own():
    recorded = automatic.choose(CONFIG, Contents(1000, 100))
    again = automatic.choose(CONFIG, Contents(72, 18, 32), recorded=recorded)
    assert again == recorded and again.data.image_size == 0
    given = dataclasses.replace(CONFIG, batch_size=7)
    assert automatic.choose(given, Contents(72, 18), recorded=recorded).batch_size == 7


def test_selection_attacks_the_first_head_too_but_not_in_a_run_from_before_it_could(tmp_path):
    """Whose config.json has no such setting; it stays as it is."""
    config = small_runs.small_config("trades_ra")
    new = loop.choose_settings(config, str(tmp_path / "new"), 1)
    assert new.selection.heads == "final_and_first" and to_mapping(new)["selection"]["heads"]
    plain = loop.choose_settings(small_runs.small_config("trades"), str(tmp_path / "new"), 1)
    assert "heads" not in to_mapping(plain)["selection"]
    workdir.open_for_training(str(tmp_path / "new"), new)
    assert loop.choose_settings(config, str(tmp_path / "new"), 1) == new

    old = str(tmp_path / "old")
    workdir.open_for_training(old, config)
    before = (tmp_path / "old/config.json").read_text()
    assert "heads" not in before
    workdir.open_for_training(old, loop.choose_settings(config, old, 1))
    assert (tmp_path / "old/config.json").read_text() == before
    given = small_runs.small_config("trades_ra", selection__heads="final_and_first")
    with pytest.raises(UsageError, match=r"selection\.heads was None, is 'final_and_first'"):
        workdir.check_for_training(old, loop.choose_settings(given, old, 1))
    with pytest.raises(UsageError, match=r"selection\.heads.*reverse_attention"):
        small_runs.small_config("trades", selection__heads="final_and_first")


@pytest.mark.parametrize("method", common.METHODS)
def test_every_method_fits_the_epochs(method):
    longer = common.METHODS[method].get(common.LONGER, 1)
    assert from_mapping(folder.get_config(method)).epochs == 40 * longer
    assert folder.get_config(f"{method},scale=tiny").data.train_examples == 0


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes of 30 images each, JPEG and PNG of different sizes."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        for i in range(30):
            pixels = draw.integers(0, 100, (*draw.integers(40, 90, 2), 3), np.uint8)
            pixels[..., label] += 120
            kind, suffix = (("PNG", "png"), ("JPEG", "jpg"))[i % 2]
            write_files(root, {f"{name}/{i:02}.{suffix}": encode(pixels, kind)})
    return root


@pytest.mark.parametrize("method", ["trades_ancra", "natural"])
def test_the_command_needs_nothing_but_the_folder(images, tmp_path, monkeypatch, method):
    taken = []
    monkeypatch.setattr(loop, "train", lambda config, *_: taken.append(config))
    finished = run_command(
        train,
        f"--config=configs/folder.py:{method}",
        f"--config.data.data_dir={images}",
        f"--workdir={tmp_path}/run",
    )
    assert finished.status in (None, 0), finished.error
    assert taken[0].data.data_dir == str(images)


@pytest.mark.slow
def test_four_commands_of_a_line_each(images, tmp_path):
    run = tmp_path / "run"
    assert small_runs  # registers the network
    small = {"epochs": 2, "model.name": "tiny", "model.width": 4}
    small |= {f"{one}.num_steps": 2 for one in ("attack", "selection", "evaluation")}
    limits = [f"--config.{name}={value}" for name, value in small.items()]
    start = ("--config=folder.py:trades", f"--config.data.data_dir={images}")
    finished = run_command(train, *start, f"--workdir={run}", *limits, "--config.max_steps=4")
    assert finished.status in (None, 0), finished.error
    assert "no test folder" in finished.output and "--config.batch_size=16" in finished.output
    settings = json.loads((run / "config.json").read_text())
    assert (settings["batch_size"], settings["data"]["image_size"]) == (16, 32)
    assert settings["data"]["selection_examples"] == 9

    finished = run_command(train, *start, f"--workdir={run}", *limits)  # goes on
    assert finished.status in (None, 0), finished.error
    assert "chosen" not in finished.output
    assert json.loads((run / "config.json").read_text()) == settings | {"max_steps": 0}
    finished = run_command(evaluate, f"--workdir={run}", "--suite=quick")
    assert finished.status in (None, 0), finished.error
    finished = run_command(report, f"--workdirs={run}", f"--output={tmp_path}/report")
    assert finished.status in (None, 0), finished.error
    assert "18" in (tmp_path / "report/report.md").read_text()
    table = tmp_path / "seen.csv"
    finished = run_command(predict, f"--workdir={run}", f"--images={images}", f"--output={table}")
    assert finished.status in (None, 0), finished.error
    assert len(table.read_text().splitlines()) == 1 + 90
