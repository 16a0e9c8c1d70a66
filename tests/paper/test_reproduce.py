"""The paper's tables by one command: its plan, what it makes of failures, and the claims."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import config as config_lib
from ancra_jax import methods
from ancra_jax.ops.files import read_json_lines
from ancra_jax.paper.claims import TABLES, PaperTable, TableRow
from ancra_jax.paper.command import main, parse
from ancra_jax.paper.measured import claim_rows, markdown, notes_of
from ancra_jax.paper.runs import Run, run_all, run_one, runs_of, stopped_by_signals
from ancra_jax.run import build as components
from configs import cifar10, cifar100, tiny_imagenet
from tests.support import ENVIRONMENT, ROOT
from tests.support.fake_runs import make_run, table_under, write_result

FILES = {"cifar10": cifar10, "cifar100": cifar100, "tiny_imagenet": tiny_imagenet}
SHAPES = {"cifar10": (32, 10), "cifar100": (32, 100), "tiny_imagenet": (64, 200)}
ROWS = {row.name: row for table in TABLES.values() for row in table.rows}


def config_of(row, scale):
    argument = f"{row.method},scale={scale}"
    return config_lib.from_mapping(FILES[row.data].get_config(argument))


@pytest.mark.parametrize("scale", ["full", "tiny"])
@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_valid_method_of_its_data_set(name, scale):
    config = config_of(ROWS[name], scale)
    assert callable(methods.create(config).loss)
    assert config.data.name == ROWS[name].data
    assert config.model.reverse_attention == ("adaptive" in ROWS[name].suites)
    assert config.name.endswith("(tiny)") == (scale == "tiny")


CONFIGS = [config_of(row, scale) for row in ROWS.values() for scale in ("full", "tiny")]
NETWORKS = {f"{config.data.name}-{config.model}": config for config in CONFIGS}


@pytest.mark.parametrize("config", NETWORKS.values(), ids=list(NETWORKS))
def test_every_network_of_the_tables_takes_its_images(config):
    size, num_classes = SHAPES[config.data.name]
    network = components.create_network(config, num_classes)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    outputs, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert outputs.logits.shape == (2, num_classes)
    assert outputs.aux_logits.shape == (2 * config.model.reverse_attention, 2, num_classes)


def test_a_recipe_happens_within_a_tiny_run():
    sat, awp, ancra = (
        config_of(ROWS[f"cifar10/{name}"], "tiny") for name in ("sat", "trades_awp", "trades_ancra")
    )
    assert sat.self_adaptive.start_epoch == 3 and sat.optimizer.milestones == (3, 4)
    assert awp.awp.warmup_epochs == 1 and awp.optimizer.milestones == (2, 3)
    assert ancra.negative_contrast.random_epochs == 1
    assert {sat.epochs, awp.epochs, ancra.epochs} == {4}
    assert ancra.model.width == 8 and config_of(ROWS["cifar10/sat"], "full").model.width == 0


def test_every_mean_of_table_1_is_of_its_four_numbers_but_one():
    table = TABLES["table1"]
    printed = {row.name: row.claims["best"] for row in table.rows if row.claims["best"]}
    assert len(printed) == 20 and len(table.rows) == 26
    numbers = np.array([[claim[name] for name in table.columns] for claim in printed.values()])
    off = np.abs(numbers[:, 1:5].mean(axis=1) - numbers[:, 5]) > 0.0051
    assert [name for name, wrong in zip(printed, off, strict=True) if wrong] == [
        "cifar100/trades_awp"
    ]
    (note,) = [note for note in notes_of(table) if "32.18" in note]
    assert "31.18" in note
    # Not only ANCRA has more accuracy under attack than on natural images.
    above = numbers[:, 1:5] > numbers[:, :1]
    fooled = {name for name, one in zip(printed, above.any(axis=1), strict=True) if one}
    assert {name for name in fooled if "ancra" not in name} == {
        "cifar10/trades_s2o",
        "cifar100/trades_s2o",
        "cifar100/udr_trades",
    }


def test_tables_claim_the_same_where_the_paper_does():
    claims = {
        name: {row.method: row.claims["best"] for row in TABLES[name].rows if row.data == "cifar10"}
        for name in ("table1", "table2", "table3", "alpha")
    }
    differing = {
        (method, column)
        for name in ("table2", "table3")
        for method, claim in claims[name].items()
        for column, number in claim.items()
        if claims["table1"].get(method, claim).get(column, number) != number
    }
    assert differing == {("mart", "natural")}
    assert claims["table2"]["mart"]["natural"] == 79.09
    ours = claims["table3"]["trades_ancra"]
    assert claims["alpha"]["trades_ancra"].items() <= ours.items()
    assert claims["table3"]["trades"]["pgd_with_p"] == 48.40  # of its final logits
    assert "pgd_with_p" not in claims["table2"]["trades"]


def test_a_dry_run_says_every_claim_above_its_commands(capsys):
    arguments = ["table1", "--dry_run"]
    assert main(arguments) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    table = TABLES["table1"]
    for run in runs_of(parse(arguments)):
        (block,) = [block for block in blocks if f"{run.title}\n" in block]
        lines = block.splitlines()
        said = [line for line in lines if line.startswith("#")]
        assert lines[len(said) :] == [shlex.join(command) for command in run.commands]
        numbers = [float(number) for number in re.findall(r"\d+\.\d\d", " ".join(said))]
        claim = run.row.claims["best"]
        assert numbers == [claim[column] for column in table.columns if claim]


def test_tables_share_the_runs_that_they_have_in_common():
    runs = [run for table in TABLES for run in runs_of(parse([table, "--seeds=3"]))]
    ours = [run for run in runs if run.row.name == "cifar10/trades_ancra"]
    assert len(ours) == 5
    trainings = {run.workdir: run.commands[0] for run in runs}
    assert len(trainings) == len({run.commands[0] for run in runs}) == len(ROWS)
    assert not any("," in workdir for workdir in trainings)  # report takes a list of them


def test_seeds_are_named_one_by_one_or_by_their_ends():
    assert parse(["table3", "--seeds=0-2,5"]).seeds == (0, 1, 2, 5)


def test_the_commands_of_a_row():
    arguments = ("table4", "--data_dir=D", "--output=O", "--seeds=0,5", "--num_examples=9")
    run = runs_of(parse([*arguments, "--rows=*soft", "--config.model.width=4"]))[1]
    assert run.title == "cifar10/trades_ancra-strategy=soft, seed 5"
    assert [shlex.join(command[1:]) for command in run.commands] == [
        "-m ancra_jax.train --config=configs/cifar10.py:trades_ancra,strategy=soft "
        "--config.seed=5 --config.data.data_dir=D --config.model.width=4 "
        "--workdir=O/cifar10/trades_ancra-strategy=soft-seed5",
        *(
            "-m ancra_jax.evaluate --workdir=O/cifar10/trades_ancra-strategy=soft-seed5 "
            f"--checkpoint={checkpoint} --suite={suite} --num_examples=9"
            for checkpoint in ("best", "last")
            for suite in ("quick", "adaptive")
        ),
    ]
    # The authors' attacks come after a row's own, once.
    for more, suites in (([], ["paper", "released"]), (["--suite=released"], ["released"])):
        (run,) = runs_of(parse(["table3", "--released", "--rows=trades", *more]))
        assert [command[-1] for command in run.commands[1:]] == [f"--suite={one}" for one in suites]
    # A rehearsal has a directory and a configuration of its own.
    (run,) = runs_of(parse(["table3", "--scale=tiny", "--rows=trades_ra"]))
    assert "--config=configs/cifar10.py:trades_ra,scale=tiny" in run.commands[0]
    assert run.workdir == "runs/reproduce-tiny/cifar10/trades_ra-seed0"
    assert run.commands[2][-2:] == ("--adaptive_budget=quick", "--num_examples=16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("tabel3", "invalid choice: 'tabel3' (choose from"),
        ("", "required: TABLE"),
        ("table3 --scale=huge", "--scale: invalid choice: 'huge'"),
        ("table3 --seed=1", "unknown argument '--seed=1'; did you mean '--seeds'?"),
        ("table3 --seeds=0,0", "'0,0' has a seed twice"),
        ("table3 --seeds=one", "'one' is not a whole number"),
        ("table3 --seeds=0-", "'' is not a whole number"),
        ("table3 --seeds=3-2", "'3-2' does not go up, as 0-15 does"),
        ("table3 --seeds=0-100000000", "'0-100000000' has more than 1000 seeds"),
        ("table3 --seeds=0-2,2", "'0-2,2' has a seed twice"),
        ("table3 --num_examples=-3", "'-3' is not a whole number"),
        ("table3 --suite=papper", "--suite: invalid choice: 'papper'"),
        ("table3 --rows=sat", "--rows: 'sat' fits no row of the table; there are cifar10/trades,"),
        ("table3 --output=a,b", "--output=a,b: must not hold a comma"),
        ("table3 --config.seed=3", "--config.seed: use --seeds"),
        ("table3 --config.epochs", "--config.epochs: needs a value, --config.epochs=VALUE"),
        ("table3 more", "unknown argument 'more'"),
    ],
)
def test_one_line_for_what_cannot_be_understood(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*arguments.split(), "--dry_run"])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def python(code):
    """A command that stands for one of the package's."""
    return (sys.executable, "-c", code)


def run_of(workdir, *commands):
    row = TableRow("Row", "cifar10", pathlib.Path(workdir).name)
    return Run(row, 0, str(workdir), commands)


def leave(workdir, name):
    return ("sh", "-c", f"mkdir -p {workdir} && touch {workdir}/{name}")


def test_a_row_that_fails_does_not_lose_the_others_and_is_tried_again(tmp_path, capfd):
    a, b = tmp_path / "a", tmp_path / "b"
    failing = python(f"import os; raise SystemExit(0 if os.path.exists({str(b / 'x')!r}) else 3)")
    runs = [run_of(a, leave(a, "1"), failing, leave(a, "2")), run_of(b, leave(b, "x"))]
    failures = run_all(runs)
    assert list(failures) == ["cifar10/a, seed 0"]
    assert failures["cifar10/a, seed 0"].endswith(" ended with exit status 3")
    assert (b / "x").exists() and not (a / "2").exists()
    (a / "1").unlink()
    assert run_all(runs) == {}
    assert (a / "2").exists() and not (a / "1").exists()  # what was finished is not run again
    assert "2/2 cifar10/b, seed 0: finished already" in capfd.readouterr().out
    assert not any(run.unfinished for run in runs)
    assert all(record["seconds"] >= 0 for record in read_json_lines(a / "commands.jsonl"))


def test_a_signal_stops_the_command_and_then_the_work(tmp_path, capfd):
    a, b = tmp_path / "a", tmp_path / "b"
    waiting = python(
        f"import pathlib, signal, sys; p = pathlib.Path({str(tmp_path)!r});"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit((p / 'told').write_text('') and 1));"
        "(p / 'ready').write_text(''); signal.pause()"
    )

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(SystemExit) as stopped, stopped_by_signals():
        run_all([run_of(a, waiting), run_of(b, leave(b, "x"))])
    assert stopped.value.code == 130 and "SIGINT" in capfd.readouterr().out
    assert (tmp_path / "told").exists() and not b.exists()


def test_two_processes_do_not_work_on_one_row(tmp_path):
    """Not even where the first was killed and left its command behind."""
    a = tmp_path / "a"
    run = run_of(a, python("pass"))
    waiting = python("print(1, flush=True); input()")
    with subprocess.Popen(
        python(
            "from ancra_jax.paper.claims import TableRow; from ancra_jax.paper.runs import *; "
            f"run_one(Run(TableRow('', '', ''), 0, {str(a)!r}, ({waiting},)))"
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline(), other.stdout.readline()
        other.kill()
        assert run_one(run) == "another process works on it"
        other.stdin.close()
        a.mkdir()
        deadline = time.monotonic() + 60
        while run_one(run) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not run.unfinished


ATTENTION = {"natural": 70.0, "pgd_with_p": 75.0}
TABLE = PaperTable(
    "A table",
    ("natural", "pgd_with_p"),
    (
        TableRow("Plain", "digits", "trades", {"best": {"natural": 80.0, "pgd_with_p": 50.0}}),
        TableRow("Attention", "digits", "trades_ra", {"best": ATTENTION, "last": {}}),
    ),
)


def test_claims_stand_beside_what_was_measured(tmp_path):
    natural, pgd, with_p = [1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1]
    results = {"natural": natural, "pgd40": pgd}
    runs = []
    for row in TABLE.rows:
        for seed in (0, 1):
            workdir = tmp_path / f"{row.method}{seed}"
            through_mask = {"adaptive": pgd} if row.method == "trades_ra" else {}
            make_run(workdir, results | through_mask, method=row.method, seed=seed)
            if row.method == "trades_ra" and seed:
                write_result(workdir, "pgd40_with_p", with_p)
                write_result(workdir, "natural", natural, "last")
            runs.append(Run(row, seed, str(workdir), ()))
    plain, best, last = claim_rows(TABLE, runs)
    assert plain.measured == {"natural": [75, 75], "pgd_with_p": [50, 50], "worst_case": [50, 50]}
    assert best.measured == {"natural": [75, 75], "pgd_with_p": [100], "worst_case": [50, 50]}
    assert (last.checkpoint, last.seeds, last.measured["natural"]) == ("last", [1], [75])
    text = markdown(TABLE, [plain, best, last], rehearsal=True)
    claimed, further = (
        [[*row.values()][2:] for row in table_under(text, title)]
        for title in ("A table", "without a claim")
    )
    assert claimed == [
        ["digits", "best", "80.00 / 75.00 ± 0.00", "50.00 / 50.00 ± 0.00", "50.00 ± 0.00"],
        ["digits", "best", "70.00 / 75.00 ± 0.00", "75.00† / 100.00†", "50.00 ± 0.00"],
    ]
    assert further == [["digits", "last", "— / 75.00", "— / —", "—"]]
    assert "first 4 test examples" in text and "seeds 0, 1" in text and "--scale=tiny" in text
    assert "--scale=tiny" not in markdown(TABLE, [plain], rehearsal=False)


def test_attacks_of_the_authors_code_have_columns_of_their_own(tmp_path):
    claims = {"natural": 80.0, "fgsm": 60.0, "cw": 50.0}
    rows = (TableRow("Plain", "digits", "trades", {"best": claims}),)
    table = PaperTable("A table", ("natural", "fgsm", "cw"), rows)
    results = {"natural": [1, 1, 1, 0], "fgsm": [1, 1, 0, 0], "fgsm_released": [1, 1, 1, 1]}
    run = Run(rows[0], 0, make_run(tmp_path / "run", results), ())
    found = claim_rows(table, [run])
    text = markdown(table, found, rehearsal=False)
    (row,) = table_under(text, "A table")
    cells = {name: row[name] for name in row if name.startswith(("FGSM", "C&W"))}
    released = "60.00 / 100.00†"
    assert cells == {"FGSM": "60.00 / 50.00", "FGSM (released)": released, "C&W": "50.00 / —"}
    assert "random point" in text
    assert set(found[0].measured) == {"natural", "fgsm", "fgsm_released", "cw", "worst_case"}


# On the digits, with the smallest network that has stages: Table 3's row in seconds.
SMALL = shlex.split(
    "table3 --scale=tiny --rows=trades --suite=quick --num_examples=4 --config.epochs=6 "
    "--config.data.name=digits --config.data.train_examples=200 --config.batch_size=40 "
    "--config.data.selection_examples=40 --config.model.name=wide_resnet10_1 "
    "--config.model.width=2"
)


@pytest.fixture
def checkout(tmp_path):
    """The repository's files, with an environment that is made already."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    for name in ("ancra_jax", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    shutil.copy(ROOT / "pyproject.toml", tmp_path / ".venv/installed-base")
    return tmp_path


def reproduce(checkout):
    return subprocess.Popen(
        [f"{checkout}/launch/reproduce.sh", *SMALL],
        cwd="/",
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_row_continues_to_the_table(checkout):
    output = checkout / "runs/reproduce-tiny"
    row = output / "cifar10/trades-seed0"
    process = reproduce(checkout)
    deadline = time.monotonic() + 300
    while not (row / "checkpoints/4").is_dir() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, text
    assert "SIGTERM" in text.splitlines()[-1]
    assert not (row / "commands.jsonl").exists()

    process = reproduce(checkout)
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 0, text
    assert f"continuing runs/reproduce-tiny/{row.relative_to(output)} at step" in text
    assert "78.92 / " in text and "--scale=tiny" in text
    (claims,) = json.loads((output / "table3/claims.json").read_text())["rows"]
    assert claims["claimed"]["natural"] == 78.92 and claims["num_examples"] == [4]
    assert len(claims["measured"]["pgd_with_p"]) == len(claims["measured"]["worst_case"]) == 1
    assert {"report.html", "report.md", "claims.md"} <= set(os.listdir(output / "table3"))
    finished = [record["command"] for record in read_json_lines(row / "commands.jsonl")]
    (run,) = runs_of(parse(SMALL))
    assert finished == [shlex.join(command[1:]) for command in run.commands]
