"""What the configurations of all data sets share: the methods, as differences from the defaults.

The defaults, the paper's training, are in ``ancra_jax/config/schema.py``.

An argument names a method and may refine it: ``trades_ancra,strategy=soft,alpha=0.5``. With
``scale=tiny`` it is a rehearsal of the same recipe for a CPU.
"""

import dataclasses

import ml_collections

from ancra_jax.config import of_no_use
from ancra_jax.config.schema import Config, DataConfig, MethodConfig
from ancra_jax.registry import did_you_mean

PGD_AT_ATTACK = {"attack.start": "uniform", "attack.step_size": 2 / 255}
TRADES_ATTACK = {"attack.objective": "kl"}
ANCRA_ATTACK = {"attack.objective": "cross_entropy"}  # paper eq. 2, also for TRADES

PGD_AT = {"method.name": "pgd_at"}
TRADES = {"method.name": "trades"}
MART = {"method.name": "mart", "method.beta": 5.0}
SAT = {"method.name": "sat", "epochs": 100, "optimizer.learning_rate": 0.1}
AWP = {
    "epochs": 200,
    "optimizer.learning_rate": 0.1,
    "optimizer.milestones": (100, 150),
    "optimizer.weight_decay": 5e-4,
}
PGD_AT_AWP = {"awp.gamma": 0.01}
TRADES_AWP = {"awp.gamma": 0.005, "awp.warmup_epochs": 10, "attack.step_size": 2 / 255}
PGD_AT_S2O = {
    "method.name": "pgd_at_s2o",
    "second_order.cross_entropy_weight": 0.9,
    "second_order.weight": 0.05,
}
TRADES_S2O = {
    "method.name": "trades_s2o",
    "second_order.cross_entropy_weight": 0.7,
    "second_order.weight": 0.15,
}
UDR = {"udr.multiplier": 1.0, "attack.start": "uniform", "attack.step_size": 2 / 255}
ADR = AWP | {"ema.decay": 0.995}
IKL = {"method.name": "ikl"} | AWP | TRADES_AWP
HAT = {
    "method.name": "hat",
    "method.beta": 2.5,
    "epochs": 50,
    "attack.step_size": 2 / 255,
    "optimizer.learning_rate": 0.21,
    "optimizer.schedule": "one_cycle_cosine",
    "optimizer.warmup_epochs": 12.5,
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 5e-4,
}
CONTRAST = {"negative_contrast.zeta": 3.0}
REVERSE_ATTENTION = {"model.reverse_attention": True}
ANCRA = CONTRAST | REVERSE_ATTENTION | ANCRA_ATTACK
TRADES_RA = TRADES | ANCRA_ATTACK | REVERSE_ATTENTION
TRUE_CONTRAST = CONTRAST | {"negative_contrast.true_labels": True}
FROM_BATCH = {"negative_contrast.from_batch": True}
LONGER = "longer"  # no setting: how many times as many epochs as the data set's

# Recipes that the files of some data sets have beside METHODS: those of the best published networks
# of this size (Wu et al., ICLR 2024), and of Wang et al. (ICML 2023) with generated images.
BEST = PGD_AT_ATTACK | ADR | {"method.name": "pgd_at_adr", "awp.gamma": 0.005}
BEST_EXTRA = {
    "method.name": "trades",
    "method.beta": 5.0,
    "method.label_smoothing": 0.1,
    "epochs": 400,
    "batch_size": 512,
    "model.name": "preact_resnet18",
    "model.activation": "silu",
    "model.batch_norm_momentum": 0.99,
    "attack.objective": "kl",
    "attack.start": "uniform",
    "attack.step_size": 2 / 255,
    "optimizer.learning_rate": 0.2,
    "optimizer.schedule": "one_cycle_cosine",
    "optimizer.warmup_epochs": 10.0,
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 5e-4,
    "optimizer.no_weight_decay_on": "batch_norm",
    "ema.decay": 0.995,
    "extra_data.fraction": 0.7,
    "extra_data.same_steps": True,
}

METHODS = {
    "natural": {"method.name": "natural"},
    "pgd_at": PGD_AT | PGD_AT_ATTACK,
    "trades": TRADES | TRADES_ATTACK,
    "mart": MART,
    "sat": SAT | TRADES_ATTACK,
    "at_awp": PGD_AT | PGD_AT_ATTACK | AWP | PGD_AT_AWP,
    "trades_awp": TRADES | TRADES_ATTACK | AWP | TRADES_AWP,
    "at_s2o": PGD_AT_S2O | PGD_AT_ATTACK,
    "trades_s2o": TRADES_S2O | TRADES_ATTACK,
    "udr_pgd": PGD_AT | UDR,
    "udr_trades": TRADES | TRADES_ATTACK | UDR,
    "pgd_at_adr": PGD_AT_ATTACK | ADR | {"method.name": "pgd_at_adr"},
    "trades_adr": TRADES_ATTACK | ADR | {"method.name": "trades_adr", "attack.step_size": 2 / 255},
    "ikl": TRADES_ATTACK | IKL,
    "hat": TRADES_ATTACK | HAT,
    "pgd_at_ancra": PGD_AT | ANCRA,
    "trades_ancra": TRADES | ANCRA,
    "mart_ancra": MART | ANCRA,
    "trades_anc": TRADES | ANCRA_ATTACK | CONTRAST,
    "trades_ra": TRADES_RA,
    # Controls of reverse attention.
    "trades_shallow": TRADES | TRADES_ATTACK | {"model.last_block": "dropped"},
    "trades_ra_stopped": TRADES_RA | {"model.attention": "stopped"},
    "trades_ra_random": TRADES_RA | {"method.random_masks": True},
    **{f"trades_beta{n}": TRADES | TRADES_ATTACK | {"method.beta": float(n)} for n in (4, 9, 12)},
    **{f"trades_{n}x": TRADES | TRADES_ATTACK | {LONGER: n} for n in (2, 4)},
    "trades_awp_ema": TRADES | TRADES_ATTACK | AWP | TRADES_AWP | {"ema.decay": 0.995},
    # What may take the place of its masks.
    "trades_margin": TRADES | TRADES_ATTACK | {"margin_alignment.weight": 1.0},
    "trades_true_anc": TRADES | TRADES_ATTACK | TRUE_CONTRAST,
    "trades_batch_anc": TRADES | TRADES_ATTACK | TRUE_CONTRAST | FROM_BATCH,
    "trades_branches": TRADES | TRADES_ATTACK | {"model.last_block": "class_branches"},
    "trades_soft_ra": TRADES_RA | {"model.attention": "soft"},
    "trades_awp_ancra": TRADES | AWP | TRADES_AWP | ANCRA,
}

ARGUMENTS = {
    "beta": ("method.beta", float),
    "aux_weight": ("method.aux_weight", float),
    "label_smoothing": ("method.label_smoothing", float),
    "gamma": ("awp.gamma", float),
    "ema": ("ema.decay", float),
    "swa": ("swa.start_epoch", int),
    "zeta": ("negative_contrast.zeta", float),
    "alpha": ("negative_contrast.alpha", float),
    "augmentation": ("data.augmentation", str),
    "margin": ("margin_alignment.weight", float),
    "temperature": ("model.temperature", float),
    "strategy": ("negative_contrast.strategy", str),
    "targeted": ("negative_contrast.targeted", lambda text: {"true": True, "false": False}[text]),
    "seed": ("seed", int),
    "width": ("model.width", int),
    "scale": ("scale", {"full": "full", "tiny": "tiny"}.__getitem__),
}


# A narrow network, a part of the data, few and cheap steps. No number of such a run reproduces
# anything: it shows that a method runs from its first step to its table.
TINY = {
    "epochs": 4,
    "log_every_steps": 10,
    "data.train_examples": 2000,
    "data.selection_examples": 200,
    "model.width": 8,
    "attack.num_steps": 5,
    "optimizer.learning_rate": 0.1,
    "selection.num_steps": 5,
}
RECIPE_EPOCHS = (
    ("self_adaptive", "start_epoch"),
    ("awp", "warmup_epochs"),
    ("negative_contrast", "random_epochs"),
    ("optimizer", "warmup_epochs"),
)


def config_of(
    argument: str | None, settings: dict, tiny: dict | None = None, recipes: dict | None = None
) -> ml_collections.ConfigDict:
    """The base with a method's recipe, then a data set's ``settings``, then the argument's.

    A data set wins over a recipe, which is written for CIFAR-10: the digits keep their few epochs.
    ``tiny`` is what the data set has otherwise than others at that scale; ``recipes`` are its own,
    beside ``METHODS``, and win over its settings.
    """
    config, recipes = base(), recipes or {}
    name, overrides = parse(argument, METHODS | recipes)
    config.name = name
    recipe = dict(METHODS.get(name, {}))
    longer = recipe.pop(LONGER, 1)
    config.update_from_flattened_dict(recipe | settings | recipes.get(name, {}))
    if overrides.pop("scale", "full") == "tiny":
        config.name = f"{name} (tiny)"
        settings = TINY | (tiny or {})
        config.update_from_flattened_dict(_scaled(config, settings["epochs"]) | settings)
    if longer != 1:
        config.update_from_flattened_dict(_scaled(config, longer * config.epochs))
    config.update_from_flattened_dict(overrides)
    for message in filter(None, (of_no_use(config, field) for field in overrides)):
        raise UnknownNameError(f"method argument {argument!r}: {message}")
    return config


def _scaled(config: ml_collections.ConfigDict, epochs: int) -> dict:
    """Other epochs; what a recipe does at an epoch, it does after the same share of a run."""
    scaled = lambda epoch: -(-epoch * epochs // config.epochs)  # noqa: E731  rounded up
    recipe = {f"{group}.{name}": scaled(config[group][name]) for group, name in RECIPE_EPOCHS}
    milestones = tuple(sorted({scaled(epoch) for epoch in config.optimizer.milestones}))
    return recipe | {"epochs": epochs, "optimizer.milestones": milestones}


class UnknownNameError(LookupError):
    """A method or argument that does not exist or is of no use, or a value that cannot be read.

    Not a ValueError: the flags library would bury the message in a traceback.
    """


def parse(argument: str | None, methods: dict) -> tuple[str, dict]:
    """Splits ``method,key=value,...``; an unknown one is named."""
    name, *pairs = (argument or "trades_ancra").split(",")
    if name not in methods:
        raise UnknownNameError(_unknown("method", name, methods))
    overrides = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in ARGUMENTS:
            raise UnknownNameError(_unknown("method argument", key, ARGUMENTS))
        field, read = ARGUMENTS[key]
        try:
            overrides[field] = read(text)
        except (KeyError, ValueError):
            raise UnknownNameError(
                f"method argument {key}={text!r}: not a value of {field}"
            ) from None
    return name, overrides


def _unknown(what: str, name: str, allowed: dict) -> str:
    hint = did_you_mean(name, allowed)
    return f"unknown {what} {name!r}: {hint}allowed are {', '.join(allowed)}"


def base() -> ml_collections.ConfigDict:
    """Return all settings with their defaults, the paper's training."""
    defaults = Config(name="", data=DataConfig(name=""), method=MethodConfig(name=""))
    return ml_collections.ConfigDict(dataclasses.asdict(defaults))
