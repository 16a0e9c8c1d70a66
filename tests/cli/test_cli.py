"""What a person at the keyboard can get wrong: one clear line, and a status other than 0."""

import subprocess
import sys

import pytest

from tests.support import ROOT


def run(*arguments):
    completed = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=300
    )
    return completed.returncode, completed.stderr.strip(), completed.stdout


DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"{DIGITS}:tradse", "--workdir=W"], "unknown method 'tradse': did you mean 'trades'?"),
        ([f"{DIGITS}:trades,betta=6", "--workdir=W"], "did you mean 'beta'?"),
        (["--config=configs/cifar11.py:trades", "--workdir=W"], "there is no file"),
        ([f"{DIGITS}:trades", "--config.epoch=3", "--workdir=W"], "epoch"),
        ([f"{DIGITS}:trades", "--config.epochs=many", "--workdir=W"], "epochs"),
        ([f"{DIGITS}:trades", "--config.model.name=resnet19", "--workdir=W"], "resnet18"),
        ([f"{DIGITS}:trades", "--config.data.name=digit", "--workdir=W"], "did you mean 'digits'?"),
        ([f"{DIGITS}:trades", "--config.method.name=trade", "--workdir=W"], "mean 'trades'?"),
        ([f"{DIGITS}:trades", "--config.attack.epsilon=-1", "--workdir=W"], "greater than 0"),
        ([f"{DIGITS}:trades", "--workdirr=W"], "workdirr"),
        ([f"{DIGITS}:trades"], "--workdir is missing"),
        (["--workdir=W"], "--config is missing"),
        ([f"{DIGITS}:trades", "--workdir=W", "extra"], "unexpected argument 'extra'"),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) and len(value) > 1 else None,
)
def test_train(tmp_path, arguments, message):
    arguments = [a.replace("--workdir=W", f"--workdir={tmp_path}/run") for a in arguments]
    status, error, _ = run("ancra_jax.train", *arguments)
    assert status not in (0, None)
    assert message in error and "Traceback" not in error
    assert len(error.splitlines()) == 1, error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=nowhere"], "holds no run"),
        ([], "--workdir is missing"),
        (["--workdir=nowhere", "--suite=papper"], "papper"),
        (["--workdir=nowhere", "--num_examples=-4"], "num_examples"),
    ],
)
def test_evaluate(arguments, message):
    status, error, _ = run("ancra_jax.evaluate", *arguments)
    assert status not in (0, None)
    assert message in error and "Traceback" not in error
    assert len(error.splitlines()) == 1, error


def test_a_configuration_is_found_from_any_directory(tmp_path):
    completed = subprocess.run(
        [
            *(sys.executable, "-m", "ancra_jax.train"),
            f"--config={ROOT}/configs/digits.py:trades",
            "--config.epochs=0",
            "--workdir=run",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "config.epochs=0: must be at least 1" in completed.stderr
