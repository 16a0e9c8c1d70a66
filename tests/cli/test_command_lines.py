"""Hundreds of command lines, each with the one outcome that a person at the keyboard expects."""

import contextlib
import csv
import dataclasses
import io
import re
import shlex
from types import SimpleNamespace

import pytest

from ancra_jax import data, evaluate, report, train
from ancra_jax.config import Config, path_list
from ancra_jax.convert import from_torch, to_torch
from ancra_jax.paper import command as paper
from ancra_jax.train import loop
from tests.support import ROOT
from tests.support.fake_runs import make_run
from tests.support.processes import Finished, run_command
from tools.publish import __main__ as publish

DIGITS = "--config=configs/digits.py:trades"


def settings(cls=Config, path=""):
    """Every setting of the schema: its dotted name and its field."""
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from settings(field.type, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", field


SETTINGS = dict(settings())
WRONG = {
    int: ("many", "1.5", "", "nan"),
    float: ("high", "nan", "-inf", "0,1"),
    bool: ("maybe", "2"),
    tuple[int, ...]: ("soon", "(1,2.5)", "(True,)"),
}


def wrong_values():
    for name, field in SETTINGS.items():
        wrong = WRONG.get(field.type, ("nonsense",) if field.metadata.get("allowed") else ())
        yield from (f"--config.{name}={value}" for value in wrong)
        below = field.metadata.get("at_least", field.metadata.get("above"))
        if below is not None:
            yield f"--config.{name}={below - 1}"
            yield f"--config.{name} {below - 1}"


WRONG_VALUES = tuple(wrong_values())


def check_refused(finished, *words):
    assert finished.status == 2, finished
    lines = finished.error.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), finished.error
    for word in words:
        assert word in lines[0], (word, lines[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("line") / "run")


def call(command, *arguments):
    if command is not paper:
        return run_command(command, *arguments)
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            with contextlib.chdir(ROOT):
                status = paper.main(arguments)
        except SystemExit as finished:
            status = finished.code
    return Finished(status, output.getvalue(), error.getvalue())


@pytest.mark.parametrize("line", WRONG_VALUES)
def test_a_wrong_value_is_named_with_its_setting(tmp_path, line):
    arguments = line.split(" ", 1)
    finished = run_command(train, DIGITS, f"--workdir={tmp_path}/run", *arguments)
    check_refused(finished, re.split("[= ]", line)[0])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_misspelt_name_is_told_what_is_near(tmp_path, name):
    line = f"--config.{name[:-1]}x=1"
    finished = run_command(train, DIGITS, f"--workdir={tmp_path}/run", line)
    check_refused(finished, line.partition("=")[0], f"--config.{name}")


@pytest.mark.parametrize("name", [name for name in SETTINGS if "." in name])
def test_a_setting_without_its_group_is_told_where_it_is(tmp_path, name):
    last = name.rpartition(".")[2]
    if last in SETTINGS:
        return  # a setting of the run itself has this name
    finished = run_command(train, DIGITS, f"--workdir={tmp_path}/run", f"--config.{last}=1")
    check_refused(finished, f"--config.{last}: ", f"--config.{name}")


PATHS = {
    "nothing://bucket/a": "nothing://",
    "s3:/bucket/a": "s3:/",
    "C:/a": "C:/",
    "gs:/bucket": "gs:/",
    "a\nb": "control",
    "a\tb": "control",
    "a\x1b[31mb": "control",
    "a\udcffb": "control",
    " a": "space",
    "n" * 300: "too long",
    "~nobody_of_this_name/a": "nobody_of_this_name",
    "FILE/below": "FILE",
    "DANGLING": "link",
}
FLAGS = (
    (train, (DIGITS,), "--workdir"),
    (evaluate, (), "--workdir"),
    (evaluate, ("--workdir=RUN",), "--transfer_from"),
    (report, ("--output=OUT",), "--workdirs"),
    (report, ("--workdirs=RUN",), "--output"),
    (publish, (), "--workdirs"),
    (publish, (), "--results"),
    (paper, ("table3", "--dry_run"), "--output"),
    (train, (DIGITS, "--workdir=OUT", "--config.distillation.weight=0.5"),
     "--config.distillation.teacher"),
    (train, (DIGITS, "--workdir=OUT", "--config.extra_data.fraction=0.5"),
     "--config.extra_data.path"),
    (train, (DIGITS, "--workdir=OUT"), "--config.init_from"),
    (from_torch, ("--arch=resnet18", "--workdir=OUT"), "--checkpoint"),
    (to_torch, ("--output=OUT",), "--workdir"),
    (to_torch, ("--workdir=RUN",), "--output"),
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path)[:20])
@pytest.mark.parametrize(("command", "others", "flag"), FLAGS, ids=lambda flag: str(flag)[-20:])
def test_a_path_that_cannot_be_is_refused(run, tmp_path, command, others, flag, path):
    (tmp_path / "FILE").write_text("a file")
    (tmp_path / "DANGLING").symlink_to(tmp_path / "nothing")
    word = PATHS[path]
    if path.startswith(("FILE", "DANGLING")):
        path = f"{tmp_path}/{path}"
    if "\n" in path and flag in ("--workdirs", "--transfer_from"):
        path = f'"{path}"'  # a list is read as a line of CSV, where a quoted break is a letter
    if path == " a" and flag in ("--workdirs", "--transfer_from"):
        word = "=a"  # a list drops such spaces, and there is no run called so
    others = [one.replace("RUN", run).replace("OUT", f"{tmp_path}/out") for one in others]
    check_refused(call(command, *others, f"{flag}={path}"), flag, word)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["DANGLING", "FILE"]


CONFIG_FILES = {
    "README.md": "README.md",
    "/etc/passwd": "/etc/passwd",
    "configs": "no file",
    "nowhere.py:trades": "nowhere.py",
    "gs://bucket/a.py": "gs://",
    "~/nowhere.py": "nowhere.py",
    "configs/common.py:trades": "get_config",
    "configs/digits.py:tradse": "'trades'",
    "configs/digits.py:trades,betta=1": "'beta'",
    "configs/digits.py:,": "unknown method",
    "TMP/syntax.py": "syntax.py: SyntaxError",
    "TMP/raises.py": "raises.py, line 2: ZeroDivisionError",
    "TMP/nothing.py": "get_config",
    "TMP/number.py": "int",
    "TMP/noargument.py:trades": ":trades",
    "TMP/empty.py": "--config.data",
    "TMP/binary.py": "binary.py",
}
FILES = {
    "syntax": "def get_config(:",
    "raises": "def get_config():\n    return 1 / 0",
    "nothing": "",
    "number": "def get_config():\n    return 3",
    "noargument": "def get_config():\n    return {}",
    "empty": "def get_config():\n    return {}",
    "binary": "\0\0",
}


@pytest.mark.parametrize("file", CONFIG_FILES)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, file):
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    given = file.replace("TMP", str(tmp_path))
    check_refused(
        run_command(train, f"--config={given}", f"--workdir={tmp_path}/run"), CONFIG_FILES[file]
    )


LINES = {
    train: {
        "": "--workdir is missing; --config is missing",
        "--config": "--config",
        "--config=": "--config",
        "CONFIG": "--workdir",
        "CONFIG CONFIG --workdir=W": "2 times",
        "CONFIG --workdir=": "--workdir",
        "CONFIG --workdir=a,b": "comma",
        "CONFIG --workdirr=W": "--workdirr; 'workdir'",
        "CONFIG --workdir=W extra": "'extra'",
        "CONFIG --workdir=W --config.optimizer=adam": "--config.optimizer='adam': ",
        "CONFIG --workdir=W --config.model.width.x=1": "model.width",
        "CONFIG --workdir=W --config.=1": "--config.",
        "CONFIG --workdir=W --config..=1": "--config.",
        "CONFIG --workdir=W --config.model.=1": "--config.model.",
        "CONFIG --workdir=W --config.method.options.a=1": "--config.method.options.a",
        "CONFIG --workdir=W --config.data.options.a=1": "--config.data.options.a",
        "CONFIG --workdir=W --config.optimizer.milestones=(9,3)": "--config.optimizer.milestones",
        "CONFIG --workdir=W --config.attack.epsilon=8": "8/255",
        "CONFIG --workdir=W --config.attack.epsilon=8/0": "--config.attack.epsilon=8/0",
        "CONFIG --workdir=W --config.model.name=resnet19": "--config.model.name='resnet19'",
        "CONFIG --workdir=W --config.data.name=digit": "--config.data.name='digit'",
        "CONFIG --workdir=W --config.method.name=trade": "mean 'trades'?",
        "CONFIG --workdir=W --config.data.train_examples=9999": "--config.data.train_examples=9999",
        "CONFIG --workdir=W --config.data.test_examples=356": "--config.data.test_examples=356",
        "CONFIG --workdir=W --config.data.selection_examples=1442": "selection_examples=1442",
        "CONFIG --workdir=W --config.data.image_size=8": "--config.data.image_size=8",
        "CONFIG --workdir=W --config.batch_size=1443": "--config.batch_size=1443",
        "CONFIG --workdir=W --config.data.name=folder": "--config.data.data_dir",
        "CONFIG --workdir=W --config.negative_contrast.strategy=x "
        "--config.negative_contrast.zeta=1": "--config.negative_contrast.strategy='x'",
        "CONFIG --workdir=W --config.awp.gamma=1 --config.awp.warmup_epochs=99": "warmup_epochs=99",
        "CONFIG --workdir=W --profile_steps=9:3": "--profile_steps=9:3",
        "CONFIG --workdir=W --num_processes=2": "--distributed",
        "CONFIG --workdir=W --distributed --process_id=0": "--num_processes",
        "CONFIG --workdir=W --distributed --process_id=0 --num_processes=2 "
        "--coordinator_address=notaport": "--coordinator_address=notaport",
        "CONFIG --workdir=W --distributed --process_id=0 --num_processes=2 "
        "--coordinator_address=host:99999": "--coordinator_address=host:99999",
        "CONFIG --workdir=W --distributed --process_id=2 --num_processes=2 "
        "--coordinator_address=host:1": "--process_id=2",
        "CONFIG --workdir=W --plugin=no_such_module": "--plugin=no_such_module",
        "CONFIG --workdir=W --plugin=~/nowhere.py": "--plugin=~/nowhere.py",
        "CONFIG --workdir=W --flagfile=/nowhere": "/nowhere",
    },
    evaluate: {
        "": "--workdir",
        "--workdir=nowhere": "--workdir=nowhere",
        "--workdir=RUN --suite=papper": "papper",
        "--workdir=RUN --num_examples=-4": "num_examples",
        "--workdir=RUN --num_examples=356": "--num_examples=356",
        "--workdir=RUN --num_examples=ten": "num_examples",
        "--workdir=RUN --max_minutes=nan": "--max_minutes=nan",
        "--workdir=RUN --max_minutes=inf": "--max_minutes=inf",
        "--workdir=RUN --profile_steps=3": "--profile_steps=3",
        "--workdir=RUN --process_id=1": "--distributed",
        "--workdir=RUN --max_minutes=-1": "max_minutes",
        "--workdir=RUN --seed=4294967296": "--seed=4294967296",
        "--workdir=RUN --weights=ema": "--weights=ema",
        "--workdir=RUN --weights=mean": "mean",
        "--workdir=RUN --transfer_from=nowhere": "--transfer_from=nowhere",
        "--workdir=RUN --transfer_from=RUN,RUN": "--transfer_from=",
        "--workdir=RUN --checkpoint=first": "first",
        "--workdir=RUN --norm=l2": "--epsilon",
        "--workdir=RUN --epsilon=8": "--epsilon=8.0",
        "--workdir=RUN --data_dir=elsewhere": "--data_dir=elsewhere",
        "--workdir=RUN --config.epochs=1": "config",
        "--workdir=RUN --weights=ema --seed=-0 --max_minutes=nan --num_examples=999":
            "--max_minutes=nan",
    },
    report: {
        "": "--output",
        "--output=W": "--workdirs",
        "--workdirs=RUN": "--output",
        "--workdirs=RUN,nowhere --output=W": "--workdirs=nowhere",
        "--workdirs=RUN,RUN --output=W": "--workdirs",
        "--workdirs=, --output=W": "--workdirs",
        "--workdirs=\"RUN --output=W": "workdirs",
    },
    publish: {"--workdirs=nowhere": "--workdirs=nowhere", "--readme=nowhere": "nowhere"},
    paper: {
        "": "TABLE",
        "table9": "table9",
        "table3 --dryrun": "--dry_run",
        "table3 --dry_run --config.epochs=0": "--config.epochs=0",
        "table3 --dry_run --config.learning_rate=1": "--config.optimizer.learning_rate",
        "table3 --dry_run --config.seed=1": "--seeds",
        "table3 --dry_run --config.epochs": "--config.epochs",
        "table3 --dry_run --num_examples=10001": "--num_examples=10001",
        "table3 --dry_run --num_examples=nan": "nan",
        "table3 --dry_run --suite=papper": "papper",
        "table3 --dry_run --rows=nothing": "'nothing'",
        "table3 --dry_run --seeds=0,0": "twice",
        "table3 --dry_run --output=a,b": "--output=a,b",
        "table3 --dry_run --data_dir=/nowhere": " --data_dir=/nowhere",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "line"), [(command, line) for command, lines in LINES.items() for line in lines]
)
def test_a_line_that_cannot_be_is_refused(run, tmp_path, command, line):
    words = [
        one.replace("CONFIG", DIGITS).replace("RUN", run).replace("=W", f"={tmp_path}/W")
        for one in line.split()
    ]
    check_refused(call(command, *words), *LINES[command][line].split("; "))
    assert not list(tmp_path.iterdir())


def test_all_errors_of_a_configuration_are_reported_together(tmp_path):
    rng = pytest.importorskip("numpy").random.default_rng(0)
    image = pytest.importorskip("PIL.Image")
    for part in ("train/cat", "train/dog", "test/cat", "test/dog"):
        for number in range(4):
            path = tmp_path / part / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (8 + number, 8, 3), "uint8")
            image.fromarray(pixels).save(path)
    wrong = {
        "batch_size": "20", "data.selection_examples": "10", "data.test_examples": "9",
        "data.train_examples": "9", "optimizer.learning_rat": "1", "model.name": "resnet19",
        "method.name": "tradse", "attack.norm": "l3", "swa.start_epoch": "99",
    }  # fmt: skip
    changed = [f"--config.{name}={value}" for name, value in wrong.items()]
    place = ["--config.data.name=folder", f"--config.data.data_dir={tmp_path}"]
    finished = run_command(train, DIGITS, "--workdir=nothing://a", *place, *changed)
    check_refused(finished, "--workdir", *(f"--config.{name}" for name in wrong))


ACCEPTED = {
    "--config.epochs=3": ("epochs", 3),
    "--config.epochs 3": ("epochs", 3),
    "-config.epochs=3": ("epochs", 3),
    "--config.seed=4294967295": ("seed", 2**32 - 1),
    "--config.optimizer.learning_rate=1": ("optimizer.learning_rate", 1.0),
    "--config.optimizer.learning_rate=1e-3": ("optimizer.learning_rate", 1e-3),
    "--config.attack.epsilon=8/255": ("attack.epsilon", 8 / 255),
    "--config.optimizer.milestones=(2,3)": ("optimizer.milestones", (2, 3)),
    "--config.optimizer.milestones=2,3": ("optimizer.milestones", (2, 3)),
    "--config.optimizer.milestones=[2]": ("optimizer.milestones", (2,)),
    "--config.optimizer.milestones=2": ("optimizer.milestones", (2,)),
    "--config.data.horizontal_flip": ("data.horizontal_flip", True),
    "--config.data.horizontal_flip=true": ("data.horizontal_flip", True),
    "--noconfig.data.horizontal_flip": ("data.horizontal_flip", False),
    "--config.data.horizontal_flip=False": ("data.horizontal_flip", False),
    "--config.name=my=name": ("name", "my=name"),
    "--config.epochs=3 --config.epochs=4": ("epochs", 4),
    "--config.data.data_dir=~/images": ("data.data_dir", "HOME/images"),
    "--config.data.data_dir=gs://bucket/a": ("data.data_dir", "gs://bucket/a"),
    "--config.data.data_dir=./~": ("data.data_dir", "./~"),
}
DIRECTORIES = {
    "~/runs/a": "HOME/runs/a",
    "~": "HOME",
    "a b": "a b",
    "a'b": "a'b",
    'a"b': 'a"b',
    "$(touch x)": "$(touch x)",
    "naïve/ü": "naïve/ü",
    "./~": "./~",
    "-a": "-a",
}


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """What the command would have trained, and where."""
    found = SimpleNamespace()
    monkeypatch.setenv("HOME", str(tmp_path))

    def note(config, workdir, *_):
        found.config, found.workdir = config, workdir

    monkeypatch.setattr(loop, "train", note)
    return found


@pytest.mark.parametrize("line", ACCEPTED)
def test_what_is_right_is_taken(trained, tmp_path, line):
    finished = run_command(train, DIGITS, "--workdir=run", *line.split())
    assert finished.status in (None, 0), finished.error
    name, value = ACCEPTED[line]
    found = trained.config
    for part in name.split("."):
        found = getattr(found, part)
    expected = value.replace("HOME", str(tmp_path)) if isinstance(value, str) else value
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "file", ["./configs/digits.py:trades,beta=3", f"{ROOT}/configs/digits.py:trades,beta=3"]
)
def test_a_file_may_be_named_in_any_way(trained, file):
    finished = run_command(train, f"--config={file}", "--workdir=run", "--config.seed=2")
    assert finished.status in (None, 0), finished.error
    assert (trained.config.method.beta, trained.config.seed) == (3.0, 2)


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_a_report_and_a_printed_command_read_what_train_accepts(trained, tmp_path, directory):
    expected = DIRECTORIES[directory].replace("HOME", str(tmp_path))
    finished = run_command(train, DIGITS, f"--workdir={directory}")
    assert finished.status in (None, 0), finished.error
    made = tmp_path / expected
    make_run(made) if not (made / "config.json").exists() else None
    out = tmp_path / "out"
    finished = run_command(report, f"--workdirs={path_list([str(made)])}", f"--output={out}")
    assert finished.status in (None, 0), finished.error
    text = (out / "report.md").read_text()
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    ancra")]
    assert any(f"--workdir={made}" in command for command in commands), commands
    assert any(f"--workdirs={made}" in command for command in commands), commands


@pytest.mark.parametrize(
    "names", [["a"], ["a", "b c"], ["a,b", "c"], ['"a"', "b"], ['a"b', 'a,"b']]
)
def test_a_list_of_paths_is_read_as_it_was_written(names):
    assert next(csv.reader([path_list(names)], strict=True)) == names


@pytest.mark.parametrize("command", [train, evaluate, report, publish, paper])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_flag(command, flag):
    finished = call(command, flag)
    assert finished.status == 0 and not finished.error
    assert "--" in finished.output and "no help available" not in finished.output
    if command is train:
        for name in (*data.names(), "trades_ancra", "pgd_at", "schema.py", "--plugin"):
            assert name in finished.output
