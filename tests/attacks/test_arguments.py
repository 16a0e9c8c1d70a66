"""What every public attack function takes: wrong values are named, other forms mean the same."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from ancra_jax import attacks, losses
from ancra_jax.attacks import objectives
from tests.support import attacked

MODEL, IMAGES, LABELS = attacked.problem(batch=3, shape=(4, 4, 3))
ONE_HOT = np.eye(4)[LABELS]
BALL = attacks.Linf(0.1)
BATCH = {"model": MODEL, "images": IMAGES, "labels": LABELS}
ALONE = BATCH | {"threat_model": BALL}
WHOLE = BATCH | {"epsilon": 0.1, "key": 0, "progress": None}
STEPS = {"key": 0, "num_steps": 2}
LOGITS = np.asarray(MODEL(IMAGES))

NUMBERS = ["num_steps", "num_targets", "num_restarts", "num_queries"]
FOUND = attacks.fmn(**ALONE, num_steps=2)
SKIPPED = attacks.fmn(**ALONE, num_steps=2, active=[False] * 3)
TWO = attacks.fmn(MODEL, IMAGES[:2], LABELS[:2], BALL, num_steps=2)

CALLS = {
    "fgsm": (attacks.fgsm, ALONE),
    "pgd": (attacks.pgd, ALONE | STEPS | {"step_size": 0.05}),
    "apgd": (attacks.apgd, ALONE | STEPS),
    "fab": (attacks.fab, ALONE | STEPS),
    "square": (attacks.square, ALONE | {"key": 0, "num_queries": 20}),
    "is_adversarial": (attacks.is_adversarial, ALONE | {"candidates": IMAGES}),
    "autoattack": (attacks.autoattack, WHOLE),
    "individually": (attacks.individually, WHOLE),
    "adaptive": (attacks.adaptive, WHOLE),
    "diagnose": (attacks.diagnose, WHOLE),
    "worst_case": (attacks.worst_case, {}),
    "accuracy_over_epsilon": (attacks.accuracy_over_epsilon, {"epsilons": [0.1]}),
    "example_keys": (attacks.example_keys, {"key": 0, "indices": LABELS}),
    "Surrogate": (attacks.Surrogate, {"name": "", "forward": MODEL}),
    "SurrogateAttack": (attacks.SurrogateAttack, {"name": "", "objective": max}),
    "Defence": (attacks.Defence, {"name": "", "attacks": []}),
    "AdaptiveBudget": (attacks.AdaptiveBudget, dict.fromkeys(NUMBERS, 1) | {"exhaustive": True}),
    "Linf": (attacks.Linf, {"epsilon": 0.1}),
    "L2": (attacks.L2, {"epsilon": 0.1}),
    "L1": (attacks.L1, {"epsilon": 0.1}),
    "threat_model": (attacks.threat_model, {"norm": "linf", "epsilon": 0.1}),
    "margin": (objectives.margin, {"model": MODEL, "labels": LABELS}),
    "targeted_ce": (objectives.targeted_cross_entropy, {"model": MODEL, "targets": LABELS}),
    "cross_entropy": (losses.cross_entropy, {"logits": LOGITS, "labels": LABELS}),
    "boosted_cross_entropy": (
        losses.boosted_cross_entropy,
        {"adversarial": LOGITS, "labels": LABELS},
    ),
    "distillation": (
        losses.distillation,
        {"student": jnp.asarray(LOGITS), "teacher": jnp.asarray(LOGITS), "temperature": 1.0},
    ),
}


@pytest.fixture(autouse=True)
def as_users_call():
    """Switches off the run-time check of annotations, which only tests have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def call(name, **change):
    """Call a function with some other arguments."""
    function, arguments = CALLS[name]
    return function(**(arguments | change))


def returning(outputs):
    return Partial(lambda logits, x: outputs(logits), jnp.asarray(LOGITS))


class Several(dict):
    """Arguments that are wrong together."""


def scalar(x):
    return jnp.sum(x)


SHAPES = [IMAGES[0], IMAGES[:0], IMAGES[..., :0], None, "images", [[1.0], [2.0, 3.0]], {}, 0.5]
DTYPES = [IMAGES.astype(kind) for kind in (np.uint8, int, bool, complex, object, str)]
PIXELS = [IMAGES * 255, IMAGES - 0.5, IMAGES * np.nan, IMAGES + np.inf, IMAGES.clip(1) + 2e-6]
CLASSES = [LABELS.astype(float), LABELS > 0, LABELS[:, None], ONE_HOT, LABELS[:2], LABELS[0]]
CLASSES += [LABELS - 4, None, "cat", ["1", "2", "3"], LABELS.astype(object), [0.0, 1.0, 2.0]]
BEYOND = [LABELS + 4, LABELS.astype(np.uint8) - np.uint8(5), LABELS.astype(int) + 2**40]
MODELS = [None, 3, "model", [MODEL], LOGITS]
MODELS += [type("Net", (), {"__module__": "torch.nn", "__call__": lambda self, x: MODEL(x)})()]
OUTPUTS = [
    lambda z: (z, {"batch_stats": z}),
    lambda z: {"logits": z},
    lambda z: [z],
    lambda z: z[:, :1],
    lambda z: z[:2],
    lambda z: z[0],
    lambda z: None,
    np.asarray,
]
WHOLE_NUMBERS = [0, -1, 2.0, np.float32(3), "2", True, [2], 2**40]
REALS = [0, -0.1, np.float32(-0.1), np.nan, np.float32("nan"), np.inf, "0.1", None, True, [0.1]]
REALS += [1j, b"1", np.array([0.1]), {}]
NORMS = [3, "l3", "L0", None, "", "inf2", b"l2", -np.inf, [2], 2.5, True]
KEYS = ["0", 1.5, -1, 2**40, True, jax.random.split(jax.random.key(0)), np.zeros(3, np.uint32), {}]
FLAGS = ["no", 1, None, [True]]
SHARES = [-0.1, 1.1, np.nan, "0.5", None]

ATTACKS = "fgsm pgd apgd fab square"
WITH_LOSS = "fgsm pgd apgd square"
EVALUATIONS = "autoattack adaptive diagnose"
EVERY = f"{ATTACKS} is_adversarial {EVALUATIONS}"

RARE = attacks.Defence("", [attacks.Surrogate("rare", MODEL, level="thorough")])

# The functions, the argument, its wrong values; the message has to name the argument.
TABLE = [
    (EVERY, "images", [*SHAPES, *DTYPES, *PIXELS]),
    (EVERY, "labels", [*CLASSES, *BEYOND]),
    ("boosted_cross_entropy", "labels", CLASSES),
    ("cross_entropy", "labels", [*CLASSES[:3], *CLASSES[4:], ONE_HOT * 2, LOGITS]),
    ("margin", "labels", [c for c in CLASSES if np.shape(c) != (2,)]),
    ("cross_entropy boosted_cross_entropy", "labels", BEYOND),
    (ATTACKS, "targets", [c for c in CLASSES if c is not None]),
    ("targeted_ce", "targets", [c for c in CLASSES if np.shape(c) != (2,)]),
    (ATTACKS, "targets", BEYOND),
    (EVERY, "model", [*MODELS, *map(returning, OUTPUTS)]),
    (f"{ATTACKS} {EVALUATIONS}", "model", [returning(lambda z: z / 0)]),
    (f"{ATTACKS} {EVALUATIONS} example_keys", "key", KEYS),
    ("example_keys", "key", [None]),
    (
        f"{ATTACKS} {EVALUATIONS}",
        "indices",
        [LABELS[:1], LABELS - 4, LABELS + 0.5, LABELS.astype(int) + 2**40],
    ),
    (f"{ATTACKS} is_adversarial", "threat_model", [None, 0.1, attacks.Linf, "linf"]),
    (f"{ATTACKS} is_adversarial", "epsilon", [Several({"threat_model": attacks.L2(7.0)})]),
    (ATTACKS, "active", [LABELS, np.ones(2, bool), "all", 1, [1, 1, 1]]),
    (ATTACKS, "loop", ["fast", None, [], 1]),
    (WITH_LOSS, "loss", ["cw", 3, [], None, scalar, objectives.margin(MODEL, LABELS + 4)]),
    (WITH_LOSS, "targets", [Several({"loss": "targeted_dlr"})]),
    (WITH_LOSS, "loss", [Several({"loss": "ce", "targets": LABELS})]),
    (WITH_LOSS, "objective", [Several({"loss": objectives.margin(MODEL, LABELS[:2])})]),
    ("apgd square", "key", [None]),
    ("apgd fab", "key", [Several({"key": None, "num_restarts": 2})]),
    ("pgd apgd", "start", [IMAGES[:1], LABELS, "natural", IMAGES.astype(int), IMAGES * np.nan]),
    ("apgd", "start", [IMAGES.clip(0.2) - 0.2]),
    (f"{EVALUATIONS} Linf L2 L1 threat_model", "epsilon", REALS),
    (f"{EVALUATIONS} Linf threat_model", "epsilon", [8, 1.01, np.int64(8)]),
    (EVALUATIONS, "epsilon", [Several({"norm": "l2", "epsilon": 7.0})]),
    (f"{EVALUATIONS} threat_model", "norm", NORMS),
    ("pgd", "step_size", [*REALS, 2]),
    ("apgd", "rho", SHARES),
    ("square", "p_init", [*SHARES, 0]),
    ("pgd apgd fab autoattack diagnose", "num_steps", WHOLE_NUMBERS),
    ("apgd fab", "num_restarts", WHOLE_NUMBERS),
    ("apgd autoattack", "gradient_draws", WHOLE_NUMBERS),
    ("square autoattack", "num_queries", WHOLE_NUMBERS),
    ("autoattack", "n_target_classes", WHOLE_NUMBERS),
    (EVALUATIONS, "batch_size", WHOLE_NUMBERS),
    (EVALUATIONS, "devices", [[], "cpu", [0], jax.devices() * 2, jax.devices()[0]]),
    ("autoattack adaptive", "max_seconds", [-1, np.nan, np.inf, "60", [60]]),
    (EVALUATIONS, "progress", ["bar", 1]),
    (f"{EVALUATIONS} individually", "state_path", [3, [], 1.5]),
    ("autoattack individually", "log_path", [3, [], "."]),
    ("autoattack diagnose", "matmul_precision", ["best", 3]),
    ("apgd autoattack diagnose", "randomized", FLAGS),
    ("autoattack", "exhaustive", FLAGS),
    ("autoattack", "checks", FLAGS),
    ("autoattack individually", "version", ["best", None, [], 1]),
    (
        "autoattack individually",
        "attacks_to_run",
        [Several({"version": "custom", "attacks_to_run": one}) for one in ("apgd-ce", [1], [])],
    ),
    ("autoattack individually", "only", ["squared", 3]),
    ("autoattack", "rank_by", [3, attacked.problem(shape=(4, 4, 3), classes=5)[0]]),
    ("adaptive", "budget", ["huge", None, []]),
    ("adaptive", "budget", [Several({"defences": [RARE], "budget": "quick"})]),
    ("AdaptiveBudget", "num_steps", WHOLE_NUMBERS),
    ("AdaptiveBudget", "targeted_on_all", FLAGS),
    ("Surrogate SurrogateAttack", "level", ["Quick", None, 1]),
    ("Surrogate", "forward", [None, LOGITS]),
    ("Surrogate", "losses", ["ce", ["ce", "cw"], 3, [1]]),
    ("SurrogateAttack", "objective", [None, LOGITS]),
    ("SurrogateAttack", "targeted", FLAGS),
    ("SurrogateAttack", "search", ["pdg", None, Several({"search": "square", "warm_start": max})]),
    ("SurrogateAttack", "warm_start", [3]),
    ("Defence", "attacks", [[MODEL], MODEL, "a1"]),
    ("adaptive", "defences", ["jpeg", [1], 3]),
    ("adaptive", "transfer_from", [[MODEL], {"other": 3}]),
    ("worst_case accuracy_over_epsilon", "results", [[], [1], 3]),
    (
        "accuracy_over_epsilon",
        "results",
        [FOUND, [FOUND, TWO], [SKIPPED], [attacks.fgsm(**ALONE)]],
    ),
    (
        "accuracy_over_epsilon",
        "epsilons",
        [
            Several({"results": [FOUND], "epsilons": e})
            for e in (0.1, [-0.1], [np.nan], ["a"], None)
        ],
    ),
    ("diagnose", "results", [[True], {"aa": LABELS}, {"aa": np.ones(2, bool)}]),
    ("is_adversarial", "candidates", [*SHAPES, *DTYPES, IMAGES[:2]]),
    ("margin targeted_ce", "model", [None, 3, "model"]),
    ("margin targeted_ce", "aux_weight", [-1, np.nan, "2", None, True]),
    ("cross_entropy boosted_cross_entropy", "label_smoothing", SHARES),
    ("distillation", "temperature", [0, -1, np.nan, "1", None]),
    ("distillation", "logits", [Several({"teacher": jnp.asarray(LOGITS[:1])})]),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[1]}: {row[0]}"[:60])
def test_a_wrong_value_is_named(row):
    names, argument, values = row
    for name in names.split():
        for value in values:
            several = isinstance(value, Several)
            change = value if several else {argument: value}
            told = f"{name}({change})"
            try:
                call(name, **change)
            except (ValueError, TypeError) as error:
                told += f" {type(error).__name__}: {error}"
                assert argument in str(error), told
                assert len(str(error)) < 400 and "\n" not in str(error), told
            else:
                pytest.fail(f"accepted: {told}")


class Tensor:
    """What another library's array looks like to NumPy."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


# The argument, other forms of its value, and the value whose results they must give bit for bit.
SAME = [
    (
        "images",
        [IMAGES.tolist(), Tensor(IMAGES), IMAGES.astype(float), jnp.asarray(IMAGES)],
        IMAGES,
    ),
    ("images", [IMAGES.clip(1) + np.float32(5e-7)], IMAGES.clip(1)),
    ("images", [IMAGES.astype(np.float16)], IMAGES.astype(np.float16).astype(np.float32)),
    ("labels", [LABELS.tolist(), Tensor(LABELS), LABELS.astype(np.uint8), LABELS + 0], LABELS),
    ("key", [0, np.int64(0), jnp.uint32(0), jax.random.PRNGKey(0)], jax.random.key(0)),
    ("num_steps", [np.int64(2), jnp.int32(2), np.uint8(2)], 2),
]
EPSILONS = [np.float64(0.25), np.float32(0.25), jnp.float32(0.25), jnp.bfloat16(0.25)]


@pytest.mark.parametrize(("argument", "forms", "value"), SAME)
def test_other_forms_of_a_value_give_the_same_result(argument, forms, value):
    for name in ("pgd", "autoattack"):
        change = {} if name == "pgd" else {"version": "custom", "attacks_to_run": ["apgd-ce"]}
        change |= {"num_steps": 2, argument: value}
        expected = call(name, **change)
        for form in forms:
            found = call(name, **(change | {argument: form}))
            np.testing.assert_array_equal(found.images, expected.images)
            assert found.images.dtype == np.float32


def test_seeds_of_keys():
    for seed in (0, 2**32 - 1):
        keys = attacks.example_keys(seed, [2, 0])
        expected = attacks.example_keys(jax.random.key(np.uint32(seed)), np.array([0, 1, 2]))
        np.testing.assert_array_equal(
            *(jax.random.key_data(one) for one in (keys, expected[np.array([2, 0])]))
        )


def test_any_callable_pytree_is_a_loss():
    def away(model, labels, x, mode):
        return {"margin": objectives.margin}[mode](model, labels)(x)

    loss = Partial(away, MODEL, jnp.asarray(LABELS), mode="margin")
    for name in ("pgd", "apgd", "square"):
        found, expected = call(name, loss=loss), call(name, loss="margin")
        np.testing.assert_allclose(found.best_loss, expected.best_loss, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_ascend_stays_in_the_ball_of_half_precision_images(dtype):
    images, ball = IMAGES.astype(dtype), attacks.Linf(0.13)
    objective = objectives.cross_entropy(MODEL, LABELS)
    last = attacks.ascend(objective, images, images, ball, step_size=0.2, num_steps=2)
    assert last.dtype == np.float32
    assert np.abs(last - images.astype(np.float32)).max() <= 0.13 + 1e-6


def test_forms_of_norm_and_epsilon():
    for form in EPSILONS:
        assert attacks.Linf(form) == attacks.Linf(0.25)
        assert type(attacks.Linf(form).epsilon) is float
    for norm in (np.inf, "inf", "Linf", "linf", np.float32("inf"), float("inf")):
        assert attacks.threat_model(norm, 0.25) == attacks.Linf(0.25)
    for norm in (2, "2", "L2", "l2", np.int64(2), 2.0):
        assert attacks.threat_model(norm, 2) == attacks.L2(2.0)
    jitted = jax.jit(lambda epsilon: attacks.Linf(epsilon).epsilon + 1)
    assert jitted(0.5) == 1.5


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", ATTACKS.split())
def test_half_precision_images_do_not_leave_the_ball(name, dtype):
    model, images, labels = attacked.problem(batch=6, shape=(4, 4, 3), seed=3)
    images, ball = images.astype(dtype), attacks.Linf(0.13)
    found = call(name, model=model, images=images, labels=labels, threat_model=ball)
    judged = attacks.is_adversarial(model, found.images, images, labels, ball)
    np.testing.assert_array_equal(found.success, judged)
    assert found.images.dtype == np.float32 and np.any(found.success)


def test_channels_first_give_a_warning():
    _, images, labels = attacked.problem(batch=3, shape=(3, 8, 6))
    model = attacked.problem(shape=(3, 8, 6))[0]
    with pytest.warns(UserWarning, match="NHWC"):
        call("fgsm", model=model, images=images, labels=labels)


@pytest.mark.parametrize("name", ["fgsm", "square", "is_adversarial", "autoattack", "adaptive"])
def test_a_module_in_its_training_phase_is_told_to_leave_it(name):
    class Net(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.head(self.norm(x).mean((1, 2)))

    with pytest.raises(TypeError, match=r"model.*model\.eval\(\)"):
        call(name, model=Net())


@pytest.mark.parametrize("name", ATTACKS.split())
def test_inside_jit_shapes_and_dtypes_alone_are_checked(name):
    expected = call(name).images
    jitted = jax.jit(lambda x, y: call(name, images=x, labels=y).images)
    np.testing.assert_allclose(jitted(IMAGES, LABELS), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="labels"):
        jitted(IMAGES, LABELS[:, None])
    if name != "fgsm":
        return
    images = jnp.asarray(IMAGES)  # closed over, it has values to look at
    found = jax.jit(lambda y: call(name, images=images, labels=y).images)(LABELS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


class Net(nnx.Module):
    def __init__(self):
        self.head = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

    def classify(self, x):
        return self.head(x.mean((1, 2)))


def test_a_method_is_judged_with_the_weights_of_now():
    net = Net()
    labels = net.classify(IMAGES).argmax(-1)
    for _ in range(2):
        wrong = net.classify(IMAGES).argmax(-1) != labels
        judged = call("is_adversarial", model=net.classify, labels=labels)
        np.testing.assert_array_equal(judged, wrong)
        ascended = objectives.cross_entropy(net.classify, labels)
        np.testing.assert_allclose(call("pgd", model=net.classify, loss=ascended).success, True)
        nnx.update(net, jax.tree.map(lambda x: -x, nnx.state(net)))
    assert wrong.any()


@pytest.mark.slow
def test_double_precision_switched_on_changes_nothing():
    compiled = {"threat_model": attacks.L2(0.5), "loop": "compiled"}
    runs = [(name, compiled) for name in ("fgsm", "pgd")]
    small = {"num_steps": 2, "num_queries": 3, "n_target_classes": 2}
    runs += [("autoattack", {"version": "plus", "norm": "l2", "epsilon": 0.5, **small})]
    runs += [("adaptive", {"budget": attacks.AdaptiveBudget(2, 2, 1, 3, True)})]
    expected = [call(name, **change) for name, change in runs]
    with jax.enable_x64(True):
        found = [call(name, **change) for name, change in runs]
        call("diagnose", num_steps=2)
    for (name, _), one, other in zip(runs, expected, found, strict=True):
        np.testing.assert_allclose(one.images, other.images, atol=1e-6, err_msg=name)
        assert other.images.dtype == np.float32


def test_a_randomised_model_is_looked_at_under_its_keys():
    def noisy(weights, x, key):
        noise = jax.random.normal(key, x.shape) / 100
        return attacked.tanh_network(weights, x + noise)

    model = Partial(noisy, *MODEL.args)
    assert len(call("apgd", model=model, randomized=True).success) == 3
    with pytest.raises(ValueError, match=r"loss=.*randomised"):
        call("apgd", model=model, randomized=True, loss=Partial(scalar))
    with pytest.raises(TypeError, match="key") as raised:
        call("apgd", model=model)
    assert any("randomized=True" in note for note in raised.value.__notes__)
