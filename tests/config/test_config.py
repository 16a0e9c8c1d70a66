import json
import pathlib

import pytest

from ancra_jax import config as config_lib
from ancra_jax.errors import UsageError
from configs import cifar10, cifar100, common, digits, tiny_imagenet

FILES = {"cifar10": cifar10, "cifar100": cifar100, "digits": digits, "tiny_imagenet": tiny_imagenet}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("method", common.METHODS)
def test_every_configuration_is_valid_and_survives_json(file, method):
    config = config_lib.from_mapping(FILES[file].get_config(method))
    assert config.name == method and config.data.name == file
    text = json.dumps(config_lib.to_mapping(config))
    assert config_lib.from_mapping(json.loads(text)) == config


def test_every_configuration_file_is_tested():
    there = {path.stem for path in pathlib.Path(common.__file__).parent.glob("*.py")}
    assert there - {"common", "__init__"} == set(FILES)


def test_the_papers_settings():
    config = config_lib.from_mapping(cifar10.get_config("trades_ancra"))
    assert (config.method.name, config.method.beta, config.method.aux_weight) == (
        "trades",
        6.0,
        2.0,
    )
    assert (config.negative_contrast.zeta, config.negative_contrast.alpha) == (3.0, 1.0)
    assert config.negative_contrast.strategy == "random" and config.negative_contrast.targeted
    assert config.model.reverse_attention and config.attack.objective == "cross_entropy"
    assert (config.attack.epsilon, config.attack.step_size) == (8 / 255, 0.007)
    assert (config.epochs, config.optimizer.milestones) == (120, (75, 90, 100))
    assert config_lib.from_mapping(cifar10.get_config("trades")).attack.objective == "kl"


def cifar10_config(method):
    return config_lib.from_mapping(cifar10.get_config(method))


@pytest.mark.parametrize(
    ("method", "epochs", "learning_rate", "weight_decay", "milestones"),
    [
        ("natural", 120, 0.01, 2e-4, (75, 90, 100)),
        ("mart", 120, 0.01, 2e-4, (75, 90, 100)),
        ("sat", 100, 0.1, 2e-4, (75, 90, 100)),
        ("at_awp", 200, 0.1, 5e-4, (100, 150)),
        ("trades_awp", 200, 0.1, 5e-4, (100, 150)),
    ],
)
def test_recipes(method, epochs, learning_rate, weight_decay, milestones):
    config = cifar10_config(method)
    assert config.epochs == epochs
    assert config.optimizer.learning_rate == learning_rate
    assert config.optimizer.weight_decay == weight_decay
    assert config.optimizer.milestones == milestones


@pytest.mark.parametrize(
    ("methods", "objective", "start", "step_size"),
    [
        (("pgd_at", "at_awp", "at_s2o", "udr_pgd"), "cross_entropy", "uniform", 2 / 255),
        (("trades", "sat", "trades_s2o"), "kl", "gaussian", 0.007),
        (("trades_awp",), "kl", "gaussian", 2 / 255),
        (("udr_trades",), "kl", "uniform", 2 / 255),
        (("mart", "pgd_at_ancra", "mart_ancra"), "cross_entropy", "gaussian", 0.007),
        (("trades_ancra", "trades_anc", "trades_ra"), "cross_entropy", "gaussian", 0.007),
    ],
)
def test_training_attacks(methods, objective, start, step_size):
    for method in methods:
        attack = cifar10_config(method).attack
        assert (attack.objective, attack.start, attack.step_size) == (objective, start, step_size)
        assert attack.num_steps == 10 and attack.epsilon == 8 / 255


def test_settings_of_the_methods():
    assert cifar10_config("mart").method.beta == 5.0
    assert cifar10_config("at_awp").awp == config_lib.WeightPerturbationConfig(
        gamma=0.01, warmup_epochs=0
    )
    assert cifar10_config("trades_awp").awp == config_lib.WeightPerturbationConfig(
        gamma=0.005, warmup_epochs=10
    )
    at_s2o, trades_s2o = (cifar10_config(name).second_order for name in ("at_s2o", "trades_s2o"))
    assert (at_s2o.cross_entropy_weight, at_s2o.weight, at_s2o.diagonal) == (0.9, 0.05, 0.2)
    assert (trades_s2o.cross_entropy_weight, trades_s2o.weight) == (0.7, 0.15)
    assert cifar100.get_config("at_s2o").second_order.diagonal == 0.02
    assert cifar10_config("udr_trades").udr.multiplier == 1.0
    assert cifar10_config("sat").self_adaptive.start_epoch == 70


@pytest.mark.parametrize("method", common.METHODS)
def test_a_data_sets_settings_win_over_a_methods_recipe(method):
    config = digits.get_config(method)
    assert config.epochs == 15 and config.optimizer.schedule == "cosine"
    assert config.optimizer.learning_rate == 0.05
    assert config.attack.step_size == config.attack.epsilon / 4
    assert tiny_imagenet.get_config(method).optimizer.weight_decay == 5e-4


def test_arguments_refine_a_method():
    config = config_lib.from_mapping(
        digits.get_config(
            "trades_awp_ancra,strategy=soft,alpha=0.5,targeted=false,gamma=0.02,label_smoothing=0.1"
        )
    )
    assert config.awp.gamma == 0.02 and config.method.label_smoothing == 0.1
    assert config.negative_contrast.strategy == "soft"
    assert config.negative_contrast.alpha == 0.5
    assert not config.negative_contrast.targeted


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("tradse", r"unknown method 'tradse': did you mean 'trades'\?"),
        ("trades_ancra,strateggy=soft", r"argument 'strateggy': did you mean 'strategy'\?"),
        ("trades_ancra,alpha=high", r"alpha='high'"),
        ("trades_ancra,targeted=maybe", r"targeted='maybe'"),
        ("trades_ancra,scale=huge", r"scale='huge'"),
        ("trades,strategy=soft", r"negative_contrast\.strategy is of no use while .*zeta is 0\.0"),
        ("trades_anc,aux_weight=1", r"aux_weight is of no use while .*reverse_attention is False"),
    ],
)
def test_wrong_arguments_are_named(argument, message):
    with pytest.raises(common.UnknownNameError, match=message):
        digits.get_config(argument)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("attack.epsilon", -1.0, r"config\.attack\.epsilon=-1\.0: must be greater than 0"),
        ("attack.epsilon", float("nan"), r"epsilon=nan: must be finite"),
        ("attack.epsilon", 8.0, r"epsilon=8\.0: must be at most 1 .* write 8/255"),
        ("attack.step_size", 0.0, r"step_size=0\.0: must be greater than 0"),
        ("attack.norm", "l3", r"norm='l3': allowed are 'linf', 'l2'"),
        ("epochs", 0, r"config\.epochs=0: must be at least 1"),
        ("optimizer.learning_rate", 0.0, r"learning_rate=0\.0: must be greater than 0"),
        ("optimizer.milestones", (90, 75), r"milestones=\(90, 75\): must be increasing"),
        ("optimizer.schedule", "cosin", r"did you mean 'cosine'\?"),
        ("method.label_smoothing", 1.5, r"label_smoothing=1\.5: must be at most 1"),
        ("self_adaptive.start_epoch", 0, r"start_epoch=0: must be at least 1"),
        ("second_order.diagonal", 2.0, r"diagonal=2\.0: must be at most 1"),
        ("awp.gamma", -0.1, r"gamma=-0\.1: must be at least 0"),
        ("udr.interval", 0, r"interval=0: must be at least 1"),
        ("negative_contrast.alpha", 1.5, r"alpha=1\.5: must be at most 1"),
        ("ema.decay", 1.5, r"config\.ema\.decay=1\.5: must be at most 1"),
        ("swa.start_epoch", 16, r"config\.swa\.start_epoch=16: must be at most config\.epochs=15"),
        ("extra_data.fraction", 0.5, r"fraction=0\.5: needs config\.extra_data\.path, which is em"),
        ("extra_data.path", "a.npz", r"path='a\.npz': is of no use while .*\.fraction is 0"),
        ("distillation.weight", 0.5, r"weight=0\.5: needs config\.distillation\.teacher, which"),
        ("distillation.teacher", "runs/a", r"teacher='runs/a': is of no use while .*\.weight is 0"),
        ("distillation.temperature", 0.0, r"temperature=0\.0: must be greater than 0"),
        ("distillation.teacher_weights", "mean", r"allowed are 'raw', 'ema', 'swa'"),
        ("model.dtype", "float16", r"dtype='float16'"),
        ("batch_size", "many", r"batch_size='many': must be of type int"),
        ("seed", True, r"seed=True: must be of type int"),
    ],
)
def test_values_out_of_range_are_named(field, value, message):
    values = config_lib.to_mapping(config_lib.from_mapping(digits.get_config("trades")))
    *groups, name = field.split(".")
    target = values
    for group in groups:
        target = target[group]
    target[name] = value
    with pytest.raises(UsageError, match=message):
        config_lib.from_mapping(values)


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 0), (0.999, 128), (1.0, 128)])
def test_a_batch_of_own_or_of_extra_examples_only_is_refused(fraction, count):
    values = config_lib.to_mapping(config_lib.from_mapping(digits.get_config("trades")))
    values["extra_data"] = {"path": "a.npz", "fraction": fraction}
    with pytest.raises(UsageError, match=rf"makes {count} of the 128 .* must be 1 to 127 of them"):
        config_lib.from_mapping(values)


def test_a_configuration_from_before_the_plug_ins_has_none_of_them():
    config = config_lib.from_mapping(digits.get_config("trades"))
    values = config_lib.to_mapping(config)
    for group in ("ema", "swa", "extra_data", "distillation"):
        del values[group]
    assert config_lib.from_mapping(values) == config


def test_unknown_and_missing_settings_are_named():
    values = config_lib.to_mapping(config_lib.from_mapping(digits.get_config("trades")))
    with pytest.raises(UsageError, match=r"config\.epoch: .*did you mean 'epochs'\?"):
        config_lib.from_mapping(values | {"epoch": 3})
    del values["attack"]["norm"]
    with pytest.raises(UsageError, match=r"config\.attack\.norm: this setting is missing"):
        config_lib.from_mapping(values)
