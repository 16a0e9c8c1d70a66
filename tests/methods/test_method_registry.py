import pytest

from ancra_jax import methods
from ancra_jax.errors import UsageError
from ancra_jax.methods import negatives
from tests.support.small_runs import small_config


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("natural", {"negative_contrast__zeta": 3.0}, r"zeta=3\.0: needs an adversarial method"),
        ("natural", {"awp__gamma": 0.01}, r"awp\.gamma=0\.01: needs an adversarial method"),
        ("natural", {"udr__multiplier": 1.0}, r"udr\.multiplier=1\.0: needs an adversarial method"),
        ("udr_pgd", {"attack__norm": "l2"}, r"needs config\.attack\.norm='linf', not 'l2'"),
        ("sat", {"method__label_smoothing": 0.1}, r"label_smoothing=0\.1: must be 0 for .*'sat'"),
        (
            "sat",
            {"self_adaptive__start_epoch": 3},
            r"start_epoch=3: must be at most config\.epochs=2",
        ),
        ("at_awp", {"awp__warmup_epochs": 2}, r"warmup_epochs=2: must be less than .*epochs=2"),
        (
            "trades_ancra,strategy=soft",
            {"negative_contrast__random_epochs": 2},
            r"random_epochs=2: must be less than config\.epochs=2",
        ),
        ("trades", {"method__name": "trade"}, r"'trade': .*did you mean 'trades'\? allowed are"),
        (
            "trades_ancra",
            {"negative_contrast__strategy": "hardest"},
            r"strategy='hardest': .*did you mean 'hard'\? allowed are random, soft, hard, easy",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(method, overrides, message):
    config = small_config(method, **overrides)
    with pytest.raises(UsageError, match=message):
        methods.create(config)


@pytest.mark.parametrize("register", [methods.register, negatives.register])
def test_a_taken_name_is_refused(register):
    with pytest.raises(UsageError, match="registered already"):
        register("trades" if register is methods.register else "random")
