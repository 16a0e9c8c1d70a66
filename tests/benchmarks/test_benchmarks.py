"""The benchmark command: what it counts, and that both libraries compute the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import models
from benchmarks import __main__ as command
from benchmarks import autoattack, flops, peaks, scaling, turns
from tests.support import ROOT


def convolution(images, kernel, stride=1, padding="VALID"):
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def of_xla(function, *args):
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def test_a_convolution_and_its_gradients_cost_what_xla_counts():
    images, kernel = jnp.ones((2, 9, 11, 5)), jnp.ones((3, 3, 5, 7))
    expected = 2 * 2 * 7 * 9 * 9 * 5 * 7
    functions = [
        convolution,
        lambda x, k: jax.linear_transpose(lambda x: convolution(x, k), x)(convolution(x, k)),
        lambda x, k: jax.linear_transpose(lambda k: convolution(x, k), k)(convolution(x, k)),
    ]
    for function, calls in zip(functions, (1, 2, 2), strict=True):
        assert flops.count(function, images, kernel) == calls * expected
        assert of_xla(function, images, kernel) == pytest.approx(calls * expected, rel=1e-3)
    # Strides: one application of the kernel per output, not per row of a dilated operand.
    strided = lambda x: jnp.sum(convolution(x, kernel, stride=2))  # noqa: E731
    assert flops.count(jax.grad(strided), images) == 2 * 2 * 4 * 5 * 9 * 5 * 7


def test_loops_branches_and_dead_code():
    matrix = jnp.ones((4, 4))
    product = lambda m: m @ matrix  # noqa: E731
    loop = lambda m: jax.lax.fori_loop(0, 5, lambda _, m: product(m), m)  # noqa: E731
    assert flops.count(product, matrix) == 2 * 4**3
    assert flops.count(loop, matrix) == 5 * 2 * 4**3
    branch = lambda m: jax.lax.cond(m[0, 0] > 0, product, lambda m: m, m)  # noqa: E731
    assert flops.count(branch, matrix) == 2 * 4**3

    def unused(m):
        product(m)
        return m

    assert flops.count(jax.jit(unused), matrix) == 0
    with pytest.raises(ValueError, match="unknown length"):
        flops.count(lambda m: jax.lax.while_loop(lambda m: m[0, 0] > 0, product, m), matrix)


def test_resnet18_costs_what_is_known_and_what_xla_counts():
    model = models.create("resnet18", num_classes=10)
    images = jnp.ones((2, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    predict = lambda v, x: model.apply(v, x).logits  # noqa: E731
    count = flops.count(predict, variables, images)
    # 0.5554 billion multiplications an image, and a fourth channel of zeros in the first layer.
    assert count / 2 / 2e9 == pytest.approx(0.5554, rel=2e-3)
    # XLA leaves out the products with the zeros of the padding.
    assert 0.85 < of_xla(predict, variables, images) / count < 0.9


def test_peaks():
    assert peaks.table_peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peaks.table_peak("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peaks.table_peak("TPU v5 lite", "bfloat16") == 197e12
    assert peaks.table_peak("NVIDIA L40S", "float32") is None
    assert peaks.table_peak("cpu", "float32") is None


def test_the_command_measures_writes_and_never_overwrites(tmp_path, monkeypatch, capsys):
    output = tmp_path / "new" / "report.json"
    flags = "--rows=data_pipeline --quick --batch_size=4 --turns=2 --turn_seconds=0.01"
    monkeypatch.setattr("sys.argv", ["benchmarks", *flags.split(), f"--output={output}"])
    assert command.main() == 0
    report = json.loads(output.read_text())
    (row,) = report["rows"]
    facts = row["libraries"]["jax"]
    assert facts["images"] == 4 and facts["seconds"] > 0 and len(facts["turns"]) == 2
    assert facts["matmul_flops"] == report["peak"]["flops"] > 0
    assert report["versions"]["jax"] == jax.__version__ and report["settings"]["turns"] == 2
    with pytest.raises(SystemExit):
        command.main()
    assert "exists already" in capsys.readouterr().err
    assert json.loads(output.read_text()) == report


def test_ratios_are_taken_turn_by_turn():
    jax_turns = [{"seconds": 1.0, "processor_seconds": 2.0}, {"seconds": 4.0}]
    jax_turns[1]["processor_seconds"] = 2.0
    others = [{"seconds": 2.0, "processor_seconds": 3.0} for _ in range(2)]
    ratios = turns._ratios(others, jax_turns)
    assert ratios["seconds"] == {"median": 1.25, "smallest": 0.5, "largest": 2.0}
    assert ratios["processor_seconds"]["median"] == 1.5


def test_another_loss_is_an_error():
    turns._check_loss("torch", 2.0001, 2.0, 1e-3)
    with pytest.raises(turns.WorkerError, match=r"torch: its first loss is 2\.1, JAX's 2\.0"):
        turns._check_loss("torch", 2.1, 2.0, 1e-3)
    with pytest.raises(turns.WorkerError):
        turns._check_loss("torch", float("nan"), 2.0, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("row", [*command.STEPS, "pgd40"])
def test_pytorchs_step_is_the_same_computation(row, monkeypatch):
    pytest.importorskip("torch")
    # Nearer to the image KL's gradient is the difference of almost equal numbers, and rounding
    # decides its signs.
    monkeypatch.setattr("ancra_jax.methods.core.START_SIGMA", 0.03)
    from benchmarks import jax_workloads, torch_workloads

    arguments = type("", (), {"width": 4, "batch_size": 8, "dtype": "float32"})
    config = command.configuration(row, arguments)
    config["attack"]["num_steps"] = config["evaluation"]["num_steps"] = 3
    ours = jax_workloads.create(row, config)
    theirs = torch_workloads.create(row, config, ours.shared, compiled=False)
    np.testing.assert_allclose(theirs.loss, ours.loss, rtol=1e-4)
    assert np.isfinite(ours.loss) and ours.operations > 0


SHORT = {
    "model": {"name": "cnn_a", "width": 4}, "num_images": 12, "num_steps": 6, "num_queries": 40,
}  # fmt: skip


@pytest.mark.parametrize("row", ["apgd", "square"])
def test_attacks_on_the_small_network(row):
    work = autoattack.create(row, SHORT)
    assert work.images == 12 and 0 < work.robust_accuracy < 1
    assert (work.loss is None) == (row == "square")
    assert work.shared["w.c1.weight"].shape == (24, 3, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("network", autoattack.NETWORKS)
@pytest.mark.parametrize("row", command.ATTACKS)
def test_pytorchs_attack_is_the_same_computation(row, network):
    pytest.importorskip("torch")
    from benchmarks import torch_autoattack

    assert command.ATTACKS == autoattack.ROWS == torch_autoattack.ROWS
    settings = SHORT | {"model": {"name": network, "width": 4}}
    ours = autoattack.create(row, settings)
    theirs = torch_autoattack.create(row, settings, ours.shared, compiled=False)
    if ours.loss is not None:
        np.testing.assert_allclose(theirs.loss, ours.loss, rtol=1e-4)
        assert theirs.robust_accuracy == ours.robust_accuracy
    # Random numbers differ: an example more or less.
    assert abs(theirs.robust_accuracy - ours.robust_accuracy) < 1.5 / ours.images


def test_the_page_has_the_table_of_devices_that_were_not_measured():
    assert scaling.table() in (ROOT / "docs/scaling.md").read_text()
    one, eight = (scaling.estimate(scaling.H100, chips, 128) for chips in (1, 8))
    assert one.reduce == 0 < eight.reduce and 7.9 < eight.images_per_second / one[3] < 8
    # Near the sum over the program's kernels of the larger of both, at speeds that were measured.
    floor = scaling.counted("h100")["floor_ms"]
    assert 1e3 * (one.compute + one.memory) == pytest.approx(floor, rel=0.2)
