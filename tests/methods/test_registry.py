"""Methods by name, what they refuse, and their own settings."""

import json

import pytest

from ancra_jax import config as config_lib
from ancra_jax import methods
from ancra_jax.errors import UsageError
from ancra_jax.run.workdir import open_for_training
from tests.support.small_runs import small_config


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("natural", {"negative_contrast__zeta": 3.0}, r"negative_contrast\.zeta=3\.0.*'natural'"),
        ("natural", {"awp__gamma": 0.01}, r"awp\.gamma=0\.01.*'natural'"),
        ("natural", {"udr__multiplier": 1.0}, r"udr\.multiplier=1\.0.*'natural'"),
        ("udr_pgd", {"attack__norm": "l2"}, r"config\.attack\.norm='l2'.*'linf'"),
        ("sat", {"method__label_smoothing": 0.1}, r"label_smoothing=0\.1.*'sat'"),
        ("sat", {"self_adaptive__start_epoch": 3}, r"start_epoch=3.*config\.epochs=2"),
        ("at_awp", {"awp__warmup_epochs": 2}, r"warmup_epochs=2.*config\.epochs=2"),
        (
            "trades_ancra,strategy=soft",
            {"negative_contrast__random_epochs": 2},
            r"random_epochs=2.*config\.epochs=2",
        ),
        ("natural", {"margin_alignment__weight": 1.0}, r"margin_alignment\.weight=1\.0.*'natural'"),
        ("trades_branches", {"margin_alignment__weight": 1.0}, r"weight=1\.0.*'class_branches'"),
        (
            "trades",
            {"method__random_masks": True},
            r"random_masks=True: .*reverse_attention=False$",
        ),
        ("trades_soft_ra", {"method__random_masks": True}, r"random_masks=True: .* not .*'soft'$"),
        (
            "trades_batch_anc",
            {"optimizer__accumulation_steps": 2},
            r"contrast\.from_batch=True: .*config\.optimizer\.accumulation_steps=2",
        ),
        ("trades", {"method__name": "trade"}, r"config\.method\.name='trade'.*'trades'"),
        (
            "trades_ancra",
            {"negative_contrast__strategy": "hardest"},
            r"config\.negative_contrast\.strategy='hardest'.*'hard'.*random, soft, hard, easy",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(method, overrides, message):
    config = small_config(method, **overrides)
    with pytest.raises(UsageError, match=message):
        methods.create(config)


SEEN = []


@methods.register("tempered")
def tempered(config, attack, *, power: float, detach: bool = False, heads: "str" = "all", any=None):
    SEEN.append((power, detach, heads, any))
    return methods.create(small_config("trades"))


def with_options(**options):
    return small_config("trades", method__name="tempered", method__options=options)


def test_a_method_gets_the_settings_of_its_own():
    methods.create(with_options(power=2, detach=True, any=[1, 2]))
    methods.create(with_options(power=0.5))
    assert SEEN == [(2.0, True, "all", (1, 2)), (0.5, False, "all", None)]
    assert all(isinstance(power, float) for power, *_ in SEEN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 1.0, "detatch": True}, r"config\.method\.options\.detatch: .*options\.detach"),
        ({"detach": True}, r"config\.method\.options\.power: .*missing"),
        ({"power": "high"}, r"config\.method\.options\.power='high': .*float"),
        ({"power": True}, r"config\.method\.options\.power=True: .*float"),
        ({"power": 1.0, "heads": 2}, r"config\.method\.options\.heads=2: .*str"),
        ({"power": 1.0, "detach": 1}, r"config\.method\.options\.detach=1: .*bool"),
    ],
)
def test_wrong_settings_of_its_own_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        methods.create(with_options(**options))


def test_settings_of_its_own_are_kept_and_distinguish_runs(tmp_path):
    config = with_options(power=0.5)
    open_for_training(str(tmp_path), config)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["method"]["options"] == {"power": 0.5}
    assert config_lib.from_mapping(saved) == config
    for options in ({"power": 2.0}, {"power": 0.5, "detach": True}, {}):
        with pytest.raises(UsageError, match=r"method\.options\.\w+ was"):
            open_for_training(str(tmp_path), with_options(**options))
