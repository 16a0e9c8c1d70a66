"""Figures of runs that were measured before: their files, and what is refused."""

import json
import pathlib
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from ancra_jax.data.dataset import Split
from ancra_jax.errors import UsageError
from ancra_jax.evaluate.features import distances
from ancra_jax.evaluate.heads import measure_heads
from ancra_jax.evaluate.spec import Target
from ancra_jax.ops.files import read_arrays, write_arrays
from ancra_jax.paper import figures
from ancra_jax.paper import runs as runs_lib
from ancra_jax.paper.claims import TableRow
from ancra_jax.paper.command import main, parse
from ancra_jax.results.store import SCHEMA
from tests.support.fake_runs import make_run
from tests.support.small_runs import small_config

COUNTS = [5, 7, 0]


def write_features(workdir, seed, masked):
    """Keep what the suite would of features that are random."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), COUNTS)
    measured, attacks = ["z"], ["adversarial"]
    if masked:
        measured, attacks = ["z", "z_masked"], ["adversarial", "adversarial_heads"]
    arrays = {}
    for name in measured:
        natural = rng.random((len(labels), 4)).astype("f4")
        adversarial = {one: natural + 0.1 * rng.random(natural.shape) for one in attacks}
        found = distances(natural, adversarial, labels, 3)
        arrays |= {f"{name}.{key}": array for key, array in found.items()}
    record = {"schema": SCHEMA, "attack": "features", "step": 20, "settings": {}}
    record |= {"data_fingerprint": "0123456789abcdef", "classes": ["cat", "dog", "owl"]}
    record |= {"counts": COUNTS, "measured": measured, "attacks": attacks}
    record["accuracy_under"] = dict.fromkeys(["natural", *attacks], 0.5)
    directory = pathlib.Path(workdir) / "evaluation/best"
    write_arrays(directory / "features.npz", arrays)
    (directory / "features.json").write_text(json.dumps(record))
    return arrays


@pytest.fixture
def workdirs(tmp_path, monkeypatch):
    """A plain run and one with reverse attention, both measured."""
    monkeypatch.setattr(figures.evaluate, "run", lambda *args, **options: None)
    paths = [make_run(tmp_path / name, method=name) for name in ("trades", "trades_ancra")]
    for number, path in enumerate(paths):
        write_features(path, number, masked=number == 1)
    return paths


@pytest.mark.parametrize("class_name", ["dog", "all"])
def test_a_figure_with_its_numbers(workdirs, tmp_path, class_name):
    drawn = figures.features(workdirs, class_name=class_name)
    files = drawn.write(str(tmp_path / "out"), "figure1")
    assert files == ["figure1.svg", "figure1.png", "figure1.md", "figure1.json", "figure1.npz"]
    assert (tmp_path / "out/figure1.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "out/figure1.json").read_text())
    assert [one["counts"] for one in content["models"]] == [COUNTS, COUNTS]
    arrays = read_arrays(tmp_path / "out/figure1.npz")
    counts = arrays["trades/z.cosine.others.counts"]
    assert counts.sum(axis=1).tolist() == [35, 35, 0]
    assert len(drawn.table.rows) == 1 + 2 * 2  # two features under two attacks
    row = {"dog": 1, "all": -1}[class_name]
    value, low, high = arrays["trades_ancra/z_masked.l2.others.mean"][row]
    assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in drawn.table.rows[-1]


def test_what_cannot_be_drawn_is_refused(workdirs, tmp_path):
    for wrong in ("3", "owl", "bird"):  # of owls there is no example
        with pytest.raises(UsageError, match=f"--class={wrong}"):
            figures.features(workdirs, class_name=wrong)
    with pytest.raises(UsageError, match="--map=pca"):
        figures.features(workdirs, projection="pca")
    with pytest.raises(UsageError, match="no best checkpoint"):
        figures.heads(workdirs[1:])
    with pytest.raises(UsageError, match="--workdirs"):
        figures.features([str(tmp_path / "nothing")])


def test_the_class_of_a_figure_is_looked_at_before_anything_is_measured():
    row = TableRow("", "digits", "trades")
    digits = runs_lib.Run(row, 0, "", (("--config=digits.py:trades",),))
    options = parse(["figure1", "--class=dog"])
    with pytest.raises(UsageError, match="--class=dog"):
        runs_lib.check([digits], options)
    options.class_name = "9"
    runs_lib.check([digits], options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1", "--workdirs=A"], "--workdirs"),
        (["table3", "--class=1"], "--class"),
        (["figure1", "--workdirs=A", "--rows=trades"], "--rows"),
        (["figure1", "--workdirs=nowhere"], "nowhere"),
        (["figure1", "--workdirs=A", "--seeds=0,1"], "--seeds"),
        (["figure1", "--released"], "--released"),
        (["heads", "--map=tsne"], "--map"),
        (["heads", "--class=1"], "--class"),
        (["coefficients", "--num_examples=9"], "--num_examples"),
    ],
)
def test_a_command_that_is_refused_says_so_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_without_work_directories_a_figure_is_of_the_tables_runs(capsys):
    assert main(["figure3", "--scale=tiny", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "runs/reproduce-tiny/cifar10/trades_ancra-seed0" in printed
    assert printed.count("--suite=features") == 4 and "ancra_jax.report" not in printed
    assert main(["heads", "--scale=tiny", "--dry_run"]) == 0
    assert "ancra_jax.evaluate" not in capsys.readouterr().out  # it measures by itself
    options = parse(["figure1", "--workdirs=A,B", "--output=O"])
    assert str(options.report) == "O" and len(options.workdirs) == 2


def test_heads_are_measured_on_two_examples_or_more():
    split = Split(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int32))
    target = Target(lambda images: images, split, 1, SingleDeviceSharding(jax.devices()[0]))
    with pytest.raises(UsageError, match="--num_examples=1"):
        measure_heads(small_config("trades_ra"), target, 1)


def test_umap_is_used_where_it_is_installed(monkeypatch):
    fake = SimpleNamespace(fit_transform=lambda points: points[:, :2])
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=lambda **options: fake))
    points = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(figures.project("umap", points), points[:, :2])


def test_a_map_of_the_same_points_is_the_same():
    points = np.random.default_rng(0).random((24, 3)).astype("f4")
    first, second = figures.project("tsne", points), figures.project("tsne", points)
    assert first.shape == (24, 2) and np.ptp(first) > 0
    np.testing.assert_array_equal(first, second)
