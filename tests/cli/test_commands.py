"""The command ``ancra``, what it says of missing extras, and where it finds configurations."""

import contextlib
import io
import re
import shutil
import subprocess
import sys
from importlib import metadata

import jax
import pytest

from ancra_jax.cli import commands, errors_in_one_line, read_settings
from ancra_jax.cli.files import import_shipped
from ancra_jax.errors import UsageError
from ancra_jax.ops.extras import MissingExtraError, explained, extra_of, lazy
from tests.support import ENVIRONMENT, ROOT
from tests.support.processes import run_python


def ancra(monkeypatch, *arguments):
    """What ``ancra`` prints, its errors included, and its exit status."""
    monkeypatch.setattr(sys, "argv", ["ancra", *arguments])
    printed, status = io.StringIO(), None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            commands.main()
        except SystemExit as finished:
            status = finished.code
    return printed.getvalue(), status or 0


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_command(monkeypatch, arguments):
    text, status = ancra(monkeypatch, *arguments)
    assert status == 0
    assert all(f"  {name} " in text for name in commands.COMMANDS)


def test_the_version_is_that_of_the_package(monkeypatch):
    import ancra_jax

    assert ancra_jax.__version__ in ancra(monkeypatch, "--version")[0]


MISSING = """
import sys
sys.modules[sys.argv[1]] = None
from ancra_jax.errors import UsageError
try:
    {line}
except UsageError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("module", "line", "extra"),
    [
        ("PIL", "from ancra_jax import data", "train"),
        ("sklearn", "from ancra_jax import data; data.load('digits')", "data"),
        (
            "tensorflow_datasets",
            "from ancra_jax import data; data.load('cifar10', data_dir='.')",
            "data",
        ),
        ("orbax", "import ancra_jax; ancra_jax.load('.')", "train"),
    ],
)
def test_a_call_from_python_says_what_to_install(monkeypatch, tmp_path, module, line, extra):
    monkeypatch.chdir(tmp_path)
    told = run_python(MISSING.format(line=line), module)
    assert re.search(rf"{module}\S* is not installed.*ancra-jax\[{extra}\]", told), told


@pytest.mark.parametrize(
    ("name", "word"), [("trian", "'train'"), ("eval", "'evaluate'"), ("--workdir=a", "evaluate")]
)
def test_a_command_that_does_not_exist_is_told_which_do(monkeypatch, name, word):
    text, status = ancra(monkeypatch, name)
    (line,) = text.splitlines()
    assert status == 2 and line.startswith("error: ") and name in line and word in line


def test_ancra_runs_what_python_m_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text, status = ancra(monkeypatch, "paper", "table9")
    assert status == 2 and "table9" in text and len(text.splitlines()) == 1
    module = [sys.executable, "-m", "ancra_jax.paper", "table9"]
    other = subprocess.run(module, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert (other.stderr, other.returncode) == (text, status)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_the_help_of_a_command_begins_with_what_it_does(name):
    words = [sys.executable, "-m", "ancra_jax.cli.commands", name, "--help"]
    ran = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    first = ran.stdout.splitlines()[0]
    assert first and not first.startswith(("Flags", " "))


LOGGING = """
import sys
from absl import logging
from jax._src import xla_bridge
from ancra_jax.cli import run

def main(arguments):
    logging.warning("of the package")
    xla_bridge.logger.warning("of JAX")
    exec(compile("logging.warning('of Orbax')", "/packages/orbax/saving.py", "exec"), globals())

run(main, lambda: None)
"""


def test_warnings_are_shown_but_those_of_orbax():
    """JAX's tell that it fell back to the CPU."""
    words = [sys.executable, "-c", LOGGING]
    ran = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "of the package" in ran.stderr and "of JAX" in ran.stderr
    assert "of Orbax" not in ran.stderr


def test_an_interrupted_command_says_so_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        raise KeyboardInterrupt
    assert ended.value.code == 130 and len(capsys.readouterr().err.splitlines()) == 1


MEMBERS = """
import ancra_jax
for names in sys.argv[1:]:
    found = ancra_jax
    for name in names.split("."):
        found = getattr(found, name)
    assert callable(found), names
"""


def test_what_the_documents_call_is_there_after_one_import():
    names = ["convert.export", "convert.import_checkpoint", "predict.predict", "data.load"]
    names += ["paper.figures.features", "defences.register"]
    names += ["methods.create", "train.run", "evaluate.run", "report.run"]
    words = [sys.executable, "-c", f"import sys{MEMBERS}", *names]
    subprocess.run(words, env=ENVIRONMENT, check=True)


LIGHT = """
import sys
before = set(sys.modules)
import ancra_jax.cli.commands, ancra_jax.train, ancra_jax.evaluate, ancra_jax.report
heavy = {"jax", "numpy", "flax", "rich", "ml_collections"} & set(sys.modules)
assert not heavy, heavy
from ancra_jax import attacks, losses
heavy = {"flax", "orbax", "scipy.stats", "PIL", "rich", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_what_is_not_used_is_not_imported():
    subprocess.run([sys.executable, "-c", LIGHT], env=ENVIRONMENT, check=True)


REQUIREMENTS = [
    "jax<0.13,>=0.10",
    "matplotlib<4,>=3.8; extra == 'all'",
    "pillow<14,>=10; extra == 'all'",
    "scikit-learn; extra == 'all'",
    "no-such-module; extra == 'all'",
    "Pillow<14,>=10; extra == 'report'",
    'matplotlib; python_version >= "3" and extra == "report"',
    "other-module; extra == 'report'",
    "pillow<14,>=10; extra == 'train'",
    "no_such.Module[a]; extra == 'train'",
]


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("PIL", "train"),
        ("matplotlib.figure", "report"),
        ("sklearn", "all"),
        ("no_such_module", "train"),
        ("jax", None),
        ("nothing", None),
    ],
)
def test_the_smallest_extra_with_a_module_is_the_one_to_install(monkeypatch, module, extra):
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIREMENTS)
    assert extra_of(module) == extra


def test_memory_that_does_not_suffice_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        jax.numpy.zeros(2**50).block_until_ready()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and len(error.splitlines()) == 1
    assert "RESOURCE_EXHAUSTED" in error and "--config.optimizer.accumulation_steps" in error
    with pytest.raises(ZeroDivisionError), errors_in_one_line():
        raise ZeroDivisionError


def test_a_missing_module_is_said_with_its_extra(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIREMENTS)
    with pytest.raises(MissingExtraError, match=r'no_such_module.* "ancra-jax\[train\]"'):  # noqa: SIM117
        with explained():
            import no_such_module  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="nothing_has_this"), explained():
        import nothing_has_this  # noqa: F401


def test_lazy_names_are_those_of_their_modules():
    get = lazy("ancra_jax", {"did_you_mean": "registry"})
    assert get("did_you_mean")("tain", ["train"]) and get("registry").Registry
    with pytest.raises(AttributeError, match=r"'ancra_jax'.*'other'"):
        get("other")


MINE = "from configs import common, {other}\n\ndef get_config(method):\n    return {values}"
VALUES = "common.config_of(method, {'data.name': 'digits', 'epochs': 7})"


@pytest.mark.parametrize(
    "name", ["digits.py", "configs/digits.py", "./digits.py", "./configs/digits.py"]
)
def test_configurations_of_the_package_are_found_from_anywhere(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]
    assert read_settings([f"{name}:trades,beta=2"]).method.beta == 2.0
    assert sys.path == before


@pytest.mark.parametrize("folder", [".", "configs", "experiments"])
def test_ones_own_file_goes_first_and_imports_what_lies_beside_it(monkeypatch, tmp_path, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / folder).mkdir(exist_ok=True)
    mine = tmp_path / folder / "digits.py"
    mine.write_text(MINE.format(other="beside", values=VALUES.replace("7", "beside.EPOCHS")))
    (tmp_path / folder / "beside.py").write_text("EPOCHS = 7")
    before = {name: module for name, module in sys.modules.items() if name.startswith("configs")}
    assert read_settings([f"{folder}/digits.py:trades"]).epochs == 7
    after = {name: module for name, module in sys.modules.items() if name.startswith("configs")}
    assert after == before


def test_another_package_called_configs_is_in_nobodys_way(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/__init__.py").write_text("EPOCHS = 7")
    (tmp_path / "configs/common.py").write_text("raise ValueError('of another project')")
    assert read_settings(["digits.py:trades"]).epochs == 15
    assert "trades" in import_shipped("common").METHODS
    mine = "from configs import EPOCHS, cifar10\n\ndef get_config():\n    return {}"
    (tmp_path / "mine.py").write_text(mine)
    with pytest.raises(UsageError, match="of another project"):
        read_settings(["mine.py"])


def test_a_file_that_is_not_there_is_told_which_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"digit\.py.*'digits\.py'.*cifar10\.py") as error:
        read_settings(["digit.py:trades"])
    assert "common.py" not in str(error.value)


def test_a_copy_of_a_configuration_can_be_edited(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    shutil.copy(ROOT / "configs/digits.py", "mine.py")
    assert read_settings(["mine.py:trades_ancra"]).name == "trades_ancra"
