"""Runs the notebook from a fresh kernel, and once more in the same kernel."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import ENVIRONMENT, ROOT

PATH = ROOT / "notebooks/ancra_colab.ipynb"
SMALL = """
from ancra_jax import attacks
from ancra_jax.attacks.adaptive import BUDGETS
from ancra_jax.attacks.autoattack.api import autoattack as whole
from ancra_jax.evaluate import sequences
from tests.support import small_runs



def little(*args, **options):
    one = {"version": "custom", "attacks_to_run": ["square"], "num_queries": 4}
    return whole(*args, **options | one)


attacks.autoattack = sequences.autoattack = little
BUDGETS["quick"] = attacks.AdaptiveBudget(2, 1, 1, 4, False)
of_others = ("awp.", "negative_contrast.", "self_adaptive.")  # of no use to TRADES, which says so
SETTINGS = {name: one for name, one in small_runs.SMALL.items() if not name.startswith(of_others)}
EXAMPLES = 8
"""


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def test_it_holds_no_outputs(notebook):
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"accelerator", "kernelspec", "language_info"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
    # As Jupyter and Colab write it: a saved notebook differs in its outputs alone.
    assert nbformat.writes(notebook) + "\n" == PATH.read_text()


@pytest.mark.slow
def test_it_runs_twice_in_a_kernel(notebook, tmp_path):
    by_name = {cell.id: cell for cell in notebook.cells}
    by_name["parameters"].source += SMALL
    (tmp_path / "digits.py").symlink_to(ROOT / "configs/digits.py")
    environment = ENVIRONMENT | {"JAX_PLATFORMS": "cpu", "IPYTHONDIR": str(tmp_path / "ipython")}
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": tmp_path}})
    with client.setup_kernel(env=environment):
        for _ in range(2):
            for number, cell in enumerate(notebook.cells):
                client.execute_cell(cell, number)
            check(by_name)
    assert (tmp_path / "runs/digits/report/report.html").exists()


def check(by_name):
    """Each cell shows its result, and a bar for each training and attack: no flood of lines."""

    def shown(name, kind):
        (result,) = (one for one in by_name[name].outputs if one.output_type == "execute_result")
        return result.data[kind]

    for name in ("train-trades", "train-ancra"):
        assert "| best" in shown(name, "text/markdown")
        assert len(by_name[name].outputs) <= 4
    assert "**robust accuracy" in shown("evaluate-trades", "text/markdown")
    assert "Adaptive attacks" in shown("evaluate-ancra", "text/markdown")
    report = shown("report", "text/html")
    assert "From the claim to the worst case" in report
    assert report.count('src="data:image/svg+xml;base64,') == 4
    assert "square" in shown("own", "text/plain")
