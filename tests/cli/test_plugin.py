"""Things of one's own, in files that ``--plugin`` names."""

import json
import re

import pytest

from ancra_jax import data, evaluate, report, train
from ancra_jax.cli.run import import_plugin
from ancra_jax.errors import UsageError
from tests.support import ROOT
from tests.support.processes import run_command
from tests.support.small_runs import small_flags


@pytest.mark.slow
def test_a_data_set_of_ones_own_is_two_files(tmp_path):
    page = (ROOT / "docs/adding.md").read_text()
    for name, text in re.findall(r"```python\n# (stripes\w*\.py)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text)
    plugin, workdir = f"--plugin={tmp_path}/stripes.py", f"{tmp_path}/run"
    config = f"--config={tmp_path}/stripes_config.py:trades"
    settings = [*small_flags(), "--config.max_steps=2", f"--workdir={workdir}"]
    settings += ["--config.data.options.period=4"]
    assert "'stripes'" in run_command(train, config, *settings).error  # not known without it
    trained = run_command(train, plugin, config, *settings)
    assert trained.status in (0, None), trained.error
    assert data.load("stripes").class_names == ("horizontal", "vertical")
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert (saved["data"]["name"], saved["data"]["options"]) == ("stripes", {"period": 4})
    choice = ("--checkpoint=last", "--suite=quick", "--num_examples=8")
    evaluated = run_command(evaluate, plugin, f"--workdir={workdir}", *choice)
    assert evaluated.status in (0, None), evaluated.error
    output = f"{tmp_path}/report"
    reported = run_command(report, plugin, f"--workdirs={workdir}", f"--output={output}")
    assert reported.status in (0, None), reported.error
    assert "stripes" in (tmp_path / "report/report.md").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module", r", line 1: ModuleNotFoundError: .*no_such_module"),
        ("\n\nx = undefined", r", line 3: NameError: .*undefined"),
        ("def f(:", r": SyntaxError: .*line 1"),
        (
            "from ancra_jax import methods\nmethods.register('sat')",
            r", line 2: UsageError: .*'sat'",
        ),
    ],
)
def test_an_error_in_a_plug_in_is_one_line_that_names_it(tmp_path, text, message):
    (tmp_path / "wrong.py").write_text(text)
    finished = run_command(train, f"--plugin={tmp_path}/wrong.py", "--workdir=nowhere")
    assert finished.status == 2
    (line,) = finished.error.splitlines()
    assert re.search(rf"--plugin={tmp_path}/wrong\.py{message}", line)


@pytest.mark.parametrize("name", ["nothing/there.py", "no_such_module"])
def test_a_plug_in_that_is_not_there_is_named(name):
    with pytest.raises(UsageError, match=rf"--plugin={name}.*{name}"):
        import_plugin(name)


def test_plug_ins_are_imported_once_and_find_their_neighbours(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "first_plugin.py").write_text("import second_plugin")
    # Cannot be imported a second time.
    (tmp_path / "second_plugin.py").write_text("import os\nos.mkdir('made')")
    monkeypatch.chdir(tmp_path)
    for name in ("first_plugin.py", "second_plugin.py", "first_plugin"):
        import_plugin(name)
    assert (tmp_path / "made").is_dir()
    (tmp_path / "random.py").write_text("raise ValueError('reached')")
    with pytest.raises(UsageError, match=r"random\.py, line 1: ValueError: reached"):
        import_plugin("random.py")
