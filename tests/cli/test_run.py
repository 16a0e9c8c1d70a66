"""What a person at the keyboard can get wrong: one clear line, and a status other than 0."""

import pytest

from ancra_jax import evaluate, train
from tests.support.processes import run_command

DIGITS = "--config=configs/digits.py"


def check_refused(finished, message):
    assert finished.status not in (0, None)
    assert message in finished.error and "Traceback" not in finished.error
    assert len(finished.error.splitlines()) == 1, finished.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"{DIGITS}:tradse", "--workdir=W"], "unknown method 'tradse': did you mean 'trades'?"),
        ([f"{DIGITS}:trades,betta=6", "--workdir=W"], "did you mean 'beta'?"),
        (["--config=configs/cifar11.py:trades", "--workdir=W"], "configs/cifar11.py"),
        (["--config", "configs/cifar11.py:trades", "--workdir=W"], "configs/cifar11.py"),
        ([f"{DIGITS}:trades", "--config.epoch=3", "--workdir=W"], "epoch"),
        ([f"{DIGITS}:trades", "--config.epochs=many", "--workdir=W"], "epochs"),
        ([f"{DIGITS}:trades", "--config.model.name=resnet19", "--workdir=W"], "resnet18"),
        ([f"{DIGITS}:trades", "--config.data.name=digit", "--workdir=W"], "id you mean 'digits'?"),
        ([f"{DIGITS}:trades", "--config.method.name=trade", "--workdir=W"], "mean 'trades'?"),
        ([f"{DIGITS}:trades", "--config.attack.epsilon=-1", "--workdir=W"], "epsilon=-1"),
        ([f"{DIGITS}:trades", "--workdirr=W"], "workdirr"),
        ([f"{DIGITS}:trades"], "--workdir"),
        (["--workdir=W"], "--config"),
        ([f"{DIGITS}:trades", "--workdir=W", "extra"], "'extra'"),
        ([f"{DIGITS}:trades", "--workdir=W", "--num_processes=2"], "--distributed"),
        ([f"{DIGITS}:trades", "--workdir=W", "--distributed", "--process_id=0"], "--num_processes"),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) and len(value) > 1 else None,
)
def test_train(tmp_path, arguments, message):
    arguments = [a.replace("--workdir=W", f"--workdir={tmp_path}/run") for a in arguments]
    check_refused(run_command(train, *arguments), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=nowhere"], "--workdir=nowhere"),
        ([], "--workdir"),
        (["--workdir=nowhere", "--suite=papper"], "papper"),
        (["--workdir=nowhere", "--num_examples=-4"], "num_examples"),
    ],
)
def test_evaluate(arguments, message):
    check_refused(run_command(evaluate, *arguments), message)
