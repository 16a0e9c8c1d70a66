"""The command that classifies images, as somebody with a folder of them calls it."""

import csv
import os

import numpy as np
import pytest

from ancra_jax import predict
from tests.support.archives import encode, random_image, write_files
from tests.support.processes import run_command
from tests.support.trained import random_model


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    model.save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    files = {
        "a.png": encode(random_image(0, 8, 8, 3)),
        "below/[red] b.JPG": encode(random_image(1, 30, 20), "JPEG"),
        "below/more/c.webp": encode(random_image(2, 9, 40, 3), "WEBP"),
        ".hidden/d.png": encode(random_image(3, 8, 8, 3)),
        "notes.txt": b"x",
    }
    write_files(tmp_path / "images", files)
    return tmp_path / "images"


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_folder(model, file, folder, tmp_path):
    table = tmp_path / "out.csv"
    finished = run_command(predict, f"--workdir={file}", f"--images={folder}", f"--output={table}")
    assert (finished.status or 0, finished.error) == (0, "")
    paths = [folder / name for name in ("a.png", "below/[red] b.JPG", "below/more/c.webp")]
    names, probabilities = model.predict(paths)
    rows = rows_of(table)
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    assert [row["class"] for row in rows] == names
    written = [[float(row[f"p({name})"]) for name in model.classes] for row in rows]
    np.testing.assert_allclose(written, probabilities, atol=1e-6)
    lines = [line for line in finished.output.splitlines() if str(folder) in line]
    for line, path, name, row in zip(lines, paths, names, probabilities, strict=True):
        assert str(path) in line and name in line and f"{row.max():.2%}" in line


def test_a_table_on_a_terminal_shows_names_as_they_are(file, folder, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "300")
    finished = run_command(predict, f"--workdir={file}", f"--images={folder}")
    assert "[red] b.JPG" in finished.output and "│" in finished.output


def test_one_image(file, folder):
    finished = run_command(predict, f"--workdir={file}", f"--images={folder}/a.png")
    assert not finished.status and finished.output.count(str(folder)) == 1


def test_damaged_images_do_not_stop_the_others(file, folder, tmp_path):
    odd = os.fsdecode(b"\xff\n.png")
    write_files(folder, {"0.png": b"", odd: encode(random_image(5, 3, 3)), "b.gif": b"GIF89a"})
    table = tmp_path / "out.csv"
    finished = run_command(predict, f"--workdir={file}", f"--images={folder}", f"--output={table}")
    assert finished.status == 1
    first, second = finished.error.splitlines()
    assert "0.png" in first and "b.gif" in second
    assert len(rows_of(table)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], ["--workdir", "--images"]),
        (["--workdir=FILE"], ["--images"]),
        (["--workdir=FILE", "--images=IMAGES/.hidden/below"], ["below"]),
        (["--workdir=FILE", "--images=EMPTY"], ["EMPTY"]),
        (["--workdir=nowhere", "--images=IMAGES"], ["--workdir=nowhere"]),
        (["--workdir=FILE", "--images=IMAGES", "--weights=ema"], ["weights='ema'"]),
        (["--workdir=FILE", "--images=IMAGES", "--output=IMAGES"], ["--output"]),
        (["--workdir=FILE", "--images=IMAGES", "--output=FILE"], ["--output", ".csv"]),
        (["--workdir=FILE", "--images=IMAGES", "--output=IMAGES/no/o.csv"], ["--output"]),
        (["--workdir=IMAGES/a.png", "--images=IMAGES"], ["a.png", "safetensors"]),
        (["--workdir=IMAGES", "--images=IMAGES"], ["--workdir", "config.json"]),
    ],
)
def test_wrong_usage_is_one_line(file, folder, tmp_path, arguments, message):
    empty = tmp_path / "EMPTY"
    empty.mkdir()
    places = {"FILE": file, "IMAGES": folder, "EMPTY": empty}
    for name, path in places.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    finished = run_command(predict, *arguments)
    assert finished.status == 2 and len(finished.error.splitlines()) == 1
    assert all(part in finished.error for part in message)
