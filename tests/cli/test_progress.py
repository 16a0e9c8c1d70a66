"""What is printed while a run goes on: a bar where one can be drawn, elsewhere few plain lines."""

import io

import pytest

from ancra_jax.cli import progress
from ancra_jax.cli.profile import Profile
from ancra_jax.cli.progress import Bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, in a list; no notebook has started this process."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for name in ("JPY_PARENT_PID", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    return now


def lines_of(capsys, clock, steps, seconds, **options):
    with Bar("trades", steps) as bar:
        for step in range(1, steps + 1):
            clock[0] += seconds
            bar.update(step, f"loss {step}", **options)
            if step % 100 == 0:
                bar.note(f"epoch {step // 100}")
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("seconds", "most"), [(0.01, 2), (0.1, 8), (1.0, 14), (60.0, 14)])
def test_a_log_has_about_ten_lines(capsys, clock, seconds, most):
    lines = lines_of(capsys, clock, 1000, seconds)
    assert 2 <= len(lines) <= most and (seconds < 1 or len(lines) > 8)
    assert lines[0] == "trades 0/1000"
    took = progress.format_seconds(1000 * seconds)
    assert lines[-1] == f"trades 1000/1000, took {took}, loss 1000, epoch 10"
    assert all("left, loss" in line for line in lines[1:-1])


def test_passes_of_one_attack_share_the_lines(capsys, clock):
    with Bar("autoattack", 100) as bar:
        for number in range(20):
            for done in range(1, 101):
                clock[0] += 1.0
                bar.update(done, f"pass {number}", total=100, left=2000 - clock[0])
    assert 8 < len(capsys.readouterr().out.splitlines()) <= 14


def test_an_error_is_not_the_end(capsys, clock):
    with pytest.raises(KeyboardInterrupt), Bar("trades", 10) as bar:
        bar.update(3)
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "trades 0/10\n"


@pytest.mark.parametrize("variable", [None, "JPY_PARENT_PID", "MPLBACKEND"])
def test_a_bar_is_drawn_on_a_terminal_but_not_in_a_cell(monkeypatch, clock, variable):
    """A notebook gives ``!command`` what looks like a terminal, and keeps all that is drawn."""
    output = Terminal()
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setenv("TERM", "xterm-color")
    if variable:
        monkeypatch.setenv(variable, "module://matplotlib_inline.backend_inline")
    with Bar("trades", 10) as bar:
        bar.update(10)
        bar.note("epoch 1")
    assert ("\x1b" in output.getvalue()) == (variable is None)
    assert "epoch 1" in output.getvalue()
    assert variable is None or len(output.getvalue().splitlines()) == 2


def test_steps_that_were_never_made_are_not_said_to_be_traced(tmp_path, capsys):
    with Profile("3:4", str(tmp_path)) as profile:
        profile.step()
    assert "--profile_steps=3:4" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())
