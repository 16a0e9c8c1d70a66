import json
import pathlib

import pytest

from ancra_jax import config as config_lib
from ancra_jax import methods
from ancra_jax.config import schema
from ancra_jax.errors import UsageError
from configs import cifar10, cifar100, common, digits, folder, tiny_imagenet
from tests.support.processes import run_python

MODULES = (cifar10, cifar100, digits, folder, tiny_imagenet)
FILES = {module.__name__.rpartition(".")[2]: module for module in MODULES}


def config_of(method, file=cifar10):
    return config_lib.from_mapping(file.get_config(method))


def plain(**changes):
    """A valid configuration as plain data, with settings changed by their dotted names."""
    values = config_lib.to_mapping(config_of("trades", digits))
    for name, value in changes.items():
        *groups, last = name.split(".")
        target = values
        for group in groups:
            target = target[group]
        target[last] = value
    return values


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("method", common.METHODS)
def test_every_configuration_is_valid_and_survives_json(file, method):
    config = config_of(method, FILES[file])
    assert config.name == method and config.data.name == file
    text = json.dumps(config_lib.to_mapping(config))
    assert config_lib.from_mapping(json.loads(text)) == config


def test_every_configuration_file_is_tested_and_loads_without_jax():
    there = {path.stem for path in pathlib.Path(common.__file__).parent.glob("*.py")}
    assert there - {"common", "__init__"} == set(FILES)
    code = f"import sys; from configs import {', '.join(FILES)}; assert 'jax' not in sys.modules"
    run_python(code)


def test_the_papers_settings():
    config = config_of("trades_ancra")
    method, contrast = config.method, config.negative_contrast
    assert (method.name, method.beta, method.aux_weight) == ("trades", 6.0, 2.0)
    assert (contrast.zeta, contrast.alpha, contrast.strategy) == (3.0, 1.0, "random")
    assert contrast.targeted and config.model.reverse_attention
    assert config.attack.objective == "cross_entropy"
    assert (config.attack.epsilon, config.attack.step_size) == (8 / 255, 0.007)
    assert (config.epochs, config.optimizer.milestones) == (120, (75, 90, 100))


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
    config = config_of(method)
    optimizer = config.optimizer
    assert (config.epochs, optimizer.learning_rate) == (epochs, learning_rate)
    assert (optimizer.weight_decay, optimizer.milestones) == (weight_decay, milestones)


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
        attack = config_of(method).attack
        assert (attack.objective, attack.start, attack.step_size) == (objective, start, step_size)
        assert attack.num_steps == 10 and attack.epsilon == 8 / 255


def test_settings_of_the_methods():
    awp, s2o = schema.WeightPerturbationConfig, schema.SecondOrderConfig
    assert config_of("mart").method.beta == 5.0
    assert config_of("at_awp").awp == awp(gamma=0.01, warmup_epochs=0)
    assert config_of("trades_awp").awp == awp(gamma=0.005, warmup_epochs=10)
    at_s2o, trades_s2o = (config_of(name).second_order for name in ("at_s2o", "trades_s2o"))
    assert at_s2o == s2o(cross_entropy_weight=0.9, weight=0.05, diagonal=0.2)
    assert trades_s2o == s2o(cross_entropy_weight=0.7, weight=0.15, diagonal=0.2)
    assert config_of("at_s2o", cifar100).second_order.diagonal == 0.02
    assert config_of("udr_trades").udr.multiplier == 1.0
    assert config_of("sat").self_adaptive.start_epoch == 70


@pytest.mark.parametrize("file", [cifar10, cifar100, tiny_imagenet])
def test_recipes_of_a_file_are_valid_and_win_over_its_settings(file):
    for name, recipe in file.RECIPES.items():
        values = file.get_config(name)
        values.extra_data.path = "images.npz" * bool(values.extra_data.fraction)
        config = config_lib.from_mapping(values)
        assert (
            callable(methods.create(config).loss) and config.data.name == file.SETTINGS["data.name"]
        )
        assert config.optimizer.milestones == recipe.get("optimizer.milestones", (75, 90, 100))
        assert config.model.name == recipe.get("model.name", "resnet18")
        assert config_lib.from_mapping(config_lib.to_mapping(config)) == config
        tiny = file.get_config(f"{name},scale=tiny")
        assert tiny.optimizer.warmup_epochs < tiny.epochs == 4
    assert "best" in file.RECIPES and "best" not in common.METHODS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.warmup_epochs": 15.0}, r"warmup_epochs=15\.0: .*less than .*epochs=15"),
        (
            {"optimizer.schedule": "one_cycle", "optimizer.warmup_epochs": 1.0},
            r"warmup_epochs=1\.0: .*'one_cycle'",
        ),
        ({"optimizer.schedule": "one_cycle_cosine"}, r"'one_cycle_cosine': needs .*warmup_epochs"),
        (
            {"optimizer.nesterov": True, "optimizer.momentum": 0.0},
            r"nesterov=True: needs .*momentum",
        ),
    ],
)
def test_schedules_and_momentum_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        config_lib.from_mapping(plain(**changes))


@pytest.mark.parametrize("method", common.METHODS)
def test_a_data_sets_settings_win_over_a_methods_recipe(method):
    config = config_of(method, digits)
    longer = common.METHODS[method].get(common.LONGER, 1)
    assert config.epochs == 15 * longer and config.optimizer.schedule == "cosine"
    assert config.optimizer.learning_rate == 0.05
    assert config.attack.step_size == config.attack.epsilon / 4
    assert config_of(method, tiny_imagenet).optimizer.weight_decay == 5e-4


def test_a_longer_training_does_everything_after_the_same_share_of_it():
    config = config_of("trades_4x")
    assert (config.epochs, config.optimizer.milestones) == (480, (300, 360, 400))
    assert config_of("trades_4x,scale=tiny").epochs == 16


def test_what_is_off_is_in_no_file_and_what_is_on_is():
    values = config_lib.to_mapping(config_of("trades_ancra"))
    off = {"attention", "temperature", "last_block", "random_masks", "true_labels", "from_batch"}
    groups = values["model"] | values["method"] | values["negative_contrast"]
    assert not off & groups.keys() and "margin_alignment" not in values
    values = config_lib.to_mapping(config_of("trades_soft_ra,margin=2,temperature=0.5"))
    assert values["margin_alignment"] == {"weight": 2.0}
    assert (values["model"]["attention"], values["model"]["temperature"]) == ("soft", 0.5)


def test_arguments_refine_a_method():
    arguments = "strategy=soft,alpha=0.5,targeted=false,gamma=0.02,label_smoothing=0.1"
    config = config_of(f"trades_awp_ancra,{arguments}", digits)
    contrast = config.negative_contrast
    assert config.awp.gamma == 0.02 and config.method.label_smoothing == 0.1
    assert (contrast.strategy, contrast.alpha, contrast.targeted) == ("soft", 0.5, False)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("tradse", r"'tradse': did you mean 'trades'\?"),
        ("trades_ancra,strateggy=soft", r"'strateggy': did you mean 'strategy'\?"),
        ("trades_ancra,alpha=high", r"alpha='high'"),
        ("trades_ancra,targeted=maybe", r"targeted='maybe'"),
        ("trades_ancra,scale=huge", r"scale='huge'"),
        ("trades,strategy=soft", r"negative_contrast\.strategy .*zeta=0\.0"),
        ("trades_anc,aux_weight=1", r"aux_weight .*reverse_attention=False"),
        ("trades_ra,temperature=2", r"temperature .*attention=''"),
        ("pgd_at,beta=3", r"beta .*name='pgd_at'"),
    ],
)
def test_wrong_arguments_are_named(argument, message):
    with pytest.raises(common.UnknownNameError, match=message):
        digits.get_config(argument)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("attack.epsilon", -1.0, r"config\.attack\.epsilon=-1\.0: .*greater than 0"),
        ("attack.epsilon", float("nan"), r"epsilon=nan: .*finite"),
        ("attack.epsilon", 8.0, r"epsilon=8\.0: .*at most 1 .*8/255"),
        ("selection.step_size", 2.0, r"selection\.step_size=2\.0: .*at most 1 .*2/255"),
        ("attack.step_size", 2.0, r"step_size=2\.0: .*at most 1 .*2/255"),
        ("attack.step_size", 0.0, r"step_size=0\.0: .*greater than 0"),
        ("attack.norm", "l3", r"norm='l3': allowed are 'linf', 'l2'"),
        ("epochs", 0, r"config\.epochs=0: .*at least 1"),
        ("optimizer.learning_rate", 0.0, r"learning_rate=0\.0: .*greater than 0"),
        ("optimizer.milestones", (90, 75), r"milestones=\(90, 75\): .*increasing"),
        ("optimizer.milestones", 5, r"milestones=5: .*whole numbers"),
        ("optimizer.schedule", "cosin", r"did you mean 'cosine'\?"),
        ("method.label_smoothing", 1.5, r"label_smoothing=1\.5: .*at most 1"),
        ("method.options", {"a": float("inf")}, r"method\.options\.a=inf: .*finite"),
        ("method.options", {"a": [1, None]}, r"method\.options\.a=None"),
        ("method.options", "period=4", r"config\.method\.options='period=4': "),
        ("data.options", 3, r"config\.data\.options=3: "),
        ("self_adaptive.start_epoch", 0, r"start_epoch=0: .*at least 1"),
        ("second_order.diagonal", 2.0, r"diagonal=2\.0: .*at most 1"),
        ("awp.gamma", -0.1, r"gamma=-0\.1: .*at least 0"),
        ("udr.interval", 0, r"interval=0: .*at least 1"),
        ("negative_contrast.alpha", 1.5, r"alpha=1\.5: .*at most 1"),
        ("optimizer.momentum", 9.0, r"momentum=9\.0: .*less than 1"),
        ("epochs", 10**9, r"epochs=1000000000: .*at most 100000"),
        ("optimizer.milestones", (0, 5), r"milestones=0: .*at least 1"),
        ("optimizer.milestones", (5, 10**30), r"milestones=1000.*: .*at most 100000"),
        ("attack.num_steps", 2**31, r"num_steps=2147483648: .*at most 2147483647"),
        ("attack.epsilon", 1e-60, r"epsilon=1e-60: .*float32"),
        ("method.beta", 1e60, r"beta=1e\+60: .*float32"),
        ("method.beta", 10**400, r"beta=1000.*: .*float"),
        ("data.image_size", 5000, r"image_size=5000: .*at most 2048"),
        ("ema.decay", 1.0, r"config\.ema\.decay=1\.0: .*less than 1"),
        ("swa.start_epoch", 16, r"config\.swa\.start_epoch=16: .*config\.epochs=15"),
        ("extra_data.fraction", 0.5, r"fraction=0\.5: .*config\.extra_data\.path"),
        ("extra_data.path", "a.npz", r"path='a\.npz': .*extra_data\.fraction is 0"),
        ("distillation.weight", 0.5, r"weight=0\.5: .*config\.distillation\.teacher"),
        ("distillation.temperature", 0.0, r"temperature=0\.0: .*greater than 0"),
        ("distillation.teacher_weights", "mean", r"allowed are 'raw', 'ema', 'swa'"),
        ("model.dtype", "float16", r"dtype='float16'"),
        ("model", 3, r"config\.model=3: "),
        ("batch_size", "many", r"batch_size='many': .*int"),
        ("name", "", r"config\.name=''"),
        ("name", "a\nb", r"config\.name='a\\nb'"),
        ("seed", True, r"seed=True: .*int"),
        ("epoch", 3, r"config\.epoch: .*did you mean --config\.epochs"),
    ],
)
def test_values_out_of_range_are_named(field, value, message):
    with pytest.raises(UsageError, match=message):
        config_lib.from_mapping(plain(**{field: value}))


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 0), (0.999, 128), (1.0, 128)])
def test_a_batch_of_own_or_of_extra_examples_only_is_refused(fraction, count):
    values = plain(extra_data={"path": "a.npz", "fraction": fraction})
    message = rf"fraction={fraction}: makes {count} of the 128 .*1 to 127"
    with pytest.raises(UsageError, match=message):
        config_lib.from_mapping(values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer.milestones": (3,)}, ["optimizer.milestones", "optimizer.schedule='cosine'"]),
        ({"awp.warmup_epochs": 1}, ["awp.warmup_epochs", "awp.gamma=0.0"]),
        ({"awp.warmup_epochs": 1, "awp.gamma": 0.01}, []),
        ({"second_order.weight": 0.1}, ["second_order.weight", "method.name='trades'"]),
        ({"method.beta": 3.0, "negative_contrast.zeta": 0.0}, []),
        ({"data.crop_padding": 2, "data.augmentation": "crop_shift"}, ["data.crop_padding"]),
        ({"data.data_dir": "here"}, ["data.data_dir", "data.name='digits'"]),
        ({"data.data_dir": "here", "data.name": "cifar10"}, []),
        ({"optimizer.schedule": "piecewise"}, ["optimizer.milestones=(75, 90, 100)", "epochs=15"]),
        ({"optimizer.schedule": "piecewise", "optimizer.milestones": ()}, []),
        ({"attack.epsilon": 0.05}, ["evaluation.epsilon=0.1", "attack.epsilon=0.05"]),
        ({"attack.norm": "l2", "evaluation.norm": "l2"}, []),
    ],
)
def test_what_few_can_mean_is_said(changes, words):
    found = config_lib.warnings_of(config_lib.from_mapping(plain(**changes)), changes)
    assert len(found) == bool(words)
    assert all(f"--config.{word}" in found[0] for word in words)


def test_settings_that_are_left_out_take_their_defaults():
    values = {"name": "mine", "data": {"name": "cifar10"}, "method": {"name": "trades"}}
    config = config_lib.from_mapping(values)
    groups = schema.DataConfig(name="cifar10"), schema.MethodConfig(name="trades")
    assert config == schema.Config(name="mine", data=groups[0], method=groups[1])
    for name in values:
        with pytest.raises(UsageError, match=rf"config\.{name}.*missing"):
            config_lib.from_mapping({key: values[key] for key in values if key != name})
    with pytest.raises(UsageError, match=r"config\.data\.name.*missing"):
        config_lib.from_mapping(values | {"data": {}})


def test_a_configuration_from_before_the_options_is_read_and_written_as_it_was():
    values = plain()
    config = config_lib.from_mapping(values)
    assert "options" not in values["method"] and "options" not in values["data"]
    for group in ("ema", "swa", "extra_data", "distillation"):
        del values[group]
    assert config_lib.from_mapping(values) == config
