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


def test_arguments_refine_a_method():
    config = config_lib.from_mapping(
        digits.get_config("trades_ancra,strategy=soft,alpha=0.5,targeted=false")
    )
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
        ("negative_contrast.strategy", "hardest", r"did you mean 'hard'\?"),
        ("negative_contrast.alpha", 1.5, r"alpha=1\.5: must be at most 1"),
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


def test_unknown_and_missing_settings_are_named():
    values = config_lib.to_mapping(config_lib.from_mapping(digits.get_config("trades")))
    with pytest.raises(UsageError, match=r"config\.epoch: .*did you mean 'epochs'\?"):
        config_lib.from_mapping(values | {"epoch": 3})
    del values["attack"]["norm"]
    with pytest.raises(UsageError, match=r"config\.attack\.norm: this setting is missing"):
        config_lib.from_mapping(values)
