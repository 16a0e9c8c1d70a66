"""What trackers are told of a run, and what their errors cost it."""

import json
import sys
from types import ModuleType, SimpleNamespace

import chex
import pytest

from ancra_jax import train as train_command
from ancra_jax.errors import UsageError
from ancra_jax.ops.files import read_json_lines
from ancra_jax.train.loop import train
from ancra_jax.train.trackers import find
from tests.support import ROOT
from tests.support.processes import run_command
from tests.support.small_runs import arrays, small_config


class Recording:
    """Keeps what it is told; its ``log`` fails at a step."""

    def __init__(self, fails_at=0):
        self.told, self.closed, self.fails_at = [], 0, fails_at

    def log(self, metrics, step):
        if step == self.fails_at:
            raise ConnectionError("no\nnetwork")
        self.told.append((step, dict(metrics)))

    def close(self):
        self.closed += 1


opened_for = []


def opened(config, workdir):
    """Open a tracker by name, as --tracker=module:function does."""
    opened_for.append((config.name, workdir))
    return Recording()


def failing(config, workdir):
    raise RuntimeError("no key")


@pytest.fixture
def fake_wandb(monkeypatch):
    """A module ``wandb`` whose runs are kept: what ``init`` got, what was logged, the ends."""
    runs = []

    def init(**options):
        run = SimpleNamespace(id=options["id"] or f"made{len(runs)}", options=options, rows=[])
        run.log = lambda metrics, step: run.rows.append((step, metrics))
        run.finish = lambda: run.rows.append("end")
        runs.append(run)
        return run

    module = ModuleType("wandb")
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delitem(sys.modules, "ancra_jax.train.weights_and_biases", raising=False)
    return runs


def test_trackers_are_told_what_is_recorded_and_cost_nothing(
    finished, tmp_path, fake_wandb, capsys
):
    workdir = str(tmp_path / "run")
    healthy, broken = Recording(), Recording(fails_at=4)
    here = f"{__name__}:"
    trackers = [healthy, broken, f"{here}opened", f"{here}failing", "wandb"]
    train(small_config(max_steps=4), workdir, trackers)
    state = train(small_config(), workdir, [healthy, "wandb"])

    # The training is that without trackers; each failure costs a line.
    chex.assert_trees_all_equal(arrays(state), finished[1])
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 2
    assert "failing" in warnings[0] and "RuntimeError: no key" in warnings[0]
    assert "Recording" in warnings[1] and "no network" in warnings[1]
    assert [step for step, _ in broken.told] == [2] and not broken.closed
    assert opened_for == [("natural", workdir)]

    # What they are told is what the file has.
    expected = []
    for record in read_json_lines(tmp_path / "run/metrics.jsonl"):
        kind, step = record.pop("kind"), record.pop("step")
        expected.append((step, {f"{kind}/{name}": value for name, value in record.items()}))
    assert healthy.told == expected and healthy.closed == 2
    names = {name for _, metrics in expected for name in metrics}
    assert names >= {
        "train/loss_natural_final",
        "train/learning_rate",
        "train/gradient_norm",
        "train/images_per_second",
        "selection/natural_accuracy",
        "selection/robust_accuracy",
    }

    # Weights & Biases go on with the run that they began.
    first, second = fake_wandb
    assert (first.options["id"], second.options["id"]) == (None, "made0")
    assert json.loads((tmp_path / "run/wandb.json").read_text()) == {"id": "made0"}
    assert first.options["resume"] == "allow" and first.options["config"]["name"] == "natural"
    assert [*first.rows[:-1], *second.rows[:-1]] == expected
    assert first.rows[-1] == second.rows[-1] == "end"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandbb", "did you mean 'wandb'.*module:function"),
        ("no_such_module:f", "--tracker=no_such_module:f: .*no_such_module"),
        ("json:nothing", "--tracker=json:nothing: .*nothing"),
        (":f", "module:function"),
    ],
)
def test_what_is_no_tracker_is_refused_by_name(name, message):
    with pytest.raises(UsageError, match=message):
        find(name)


def test_the_command_refuses_trackers_with_what_else_is_wrong(tmp_path):
    flags = [f"--config={ROOT}/configs/digits.py:tradess", f"--workdir={tmp_path}/run"]
    finished = run_command(train_command, *flags, "--tracker=wandbb")
    assert finished.status == 2 and not (tmp_path / "run").exists()
    assert all(word in finished.error for word in ("tradess", "wandbb"))
