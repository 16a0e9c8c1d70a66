"""The launchers against programs that stand for clouds, clusters and `ancra`."""

import os
import shutil
import subprocess
import time

import pytest
import yaml

from ancra_jax.cli.commands import COMMANDS
from tests.support import ROOT

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / "launch/slurm.sbatch"])
NOTE = 'echo "$(basename "$0") $*" >> "$CALLS"\n'
PROGRAMS = {
    # `ancra train` goes on until a signal stops it, and ends on the second call.
    "ancra": f"""cd "$(dirname "$0")/../.."
{NOTE}echo "devices ${{JAX_LOCAL_DEVICE_IDS:-all}}"
if [ "$1" = train ] && [ ! -e saved ]; then
  trap 'touch saved; echo "stopped, saved"; exit 143' TERM
  if [ -n "${{SIGNAL:-}}" ]; then kill "-$SIGNAL" $$; fi
  while :; do sleep 0.02; done
fi
""",
    "python": NOTE,
    "uv": NOTE,
    "scontrol": NOTE + "touch requeued\n",
    "srun": NOTE + 'while [[ "$1" == --* ]]; do shift; done\n"$@"\n',
    # Runs the script once for each number of the array, and again while it is requeued.
    "sbatch": NOTE
    + """export SLURM_SUBMIT_DIR="$PWD" SLURM_JOB_ID=7 SLURM_CPUS_PER_TASK=16 SLURM_GPUS_ON_NODE=2
while [[ "$1" == --* ]]; do
  case "$1" in
    --array=*) array="${1#--array=}" ;;
    --nodes=*) export SLURM_JOB_NUM_NODES="${1#--nodes=}" ;;
  esac
  shift
done
cp "$1" script
shift
for SLURM_ARRAY_TASK_ID in ${array:-""}; do
  export SLURM_ARRAY_TASK_ID
  if [ -z "$SLURM_ARRAY_TASK_ID" ]; then unset SLURM_ARRAY_TASK_ID; fi
  touch requeued
  while [ -e requeued ]; do
    rm requeued
    bash script "$@" && status=0 || status=$?
  done
done
exit "$status"
""",
    # Two hosts, which are directories.
    "gcloud": NOTE
    + """hosts="host0 host1" command=""
for word in "$@"; do
  case "$word" in
    --worker=all) ;;
    --worker=*) hosts="host${word#--worker=}" ;;
    --command=*) command="${word#--command=}" ;;
  esac
done
for host in $hosts; do
  case "$4" in
    create) mkdir -p "$CLOUD/$host" ;;
    scp) cp "$5" "$CLOUD/$host/${6#*:}" ;;
    ssh) (cd "$CLOUD/$host" && HOME="$PWD" bash -c "$command") ;;
    delete) rm -r "${CLOUD:?}/$host" ;;
  esac
done
""",
}


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A clone with an environment, and the programs on PATH."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "launch", clone / "launch")
    shutil.copy(ROOT / "pyproject.toml", clone)
    for name, text in PROGRAMS.items():
        inside = name in ("ancra", "python")
        write_program((clone / ".venv/bin" if inside else tmp_path / "bin") / name, text)
    for name in ("base", "cuda13", "dev"):
        shutil.copy(ROOT / "pyproject.toml", clone / f".venv/installed-{name}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("CLOUD", str(tmp_path / "cloud"))
    return clone


def run(tree, *words, **variables):
    return subprocess.run(
        words,
        cwd=tree,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(tree):
    path = tree.parent / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    ran = run(ROOT, "shellcheck", "--external-sources", *map(str, SCRIPTS))
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("gpu.sh evaluate --workdir=a", [".venv/bin/ancra evaluate --workdir=a"]),
        ("quickstart.sh out", [".venv/bin/python -m ancra_jax.report --output=out/report "]),
        (
            "cpu_rows.sh data.npz out",
            [".venv/bin/python -m ancra_jax.train --workdir=out/trades-0"],
        ),
        ("test.sh", [".venv/bin/ruff check ."]),
        (
            "slurm.sbatch train --workdir=a-%a",
            [
                "srun --ntasks-per-node=1 --cpus-per-task=16 .venv/bin/ancra train --workdir=a-%a",
                "scontrol requeue JOB",
            ],
        ),
        (
            "tpu_vm.sh create T --accelerator-type=v4-8 --version=V --queued",
            [
                "gcloud compute tpus queued-resources create T --node-id=T"
                " --accelerator-type=v4-8 --runtime-version=V"
            ],
        ),
        (
            "tpu_vm.sh delete T --queued",
            ["gcloud compute tpus queued-resources delete T --force --quiet"],
        ),
        ("tpu_vm.sh run T train --workdir=a", ["gcloud compute tpus tpu-vm ssh T --worker=all "]),
        ("tpu_vm.sh run T report", ["gcloud compute tpus tpu-vm ssh T --worker=0 "]),
    ],
)
def test_dry_run_prints_what_would_run_and_does_nothing(tree, words, expected):
    shutil.rmtree(tree / ".venv")
    before = sorted(tree.rglob("*"))
    script, *arguments = words.split()
    ran = run(tree, "bash", f"launch/{script}", *arguments, "--dry_run")
    assert ran.returncode == 0, ran.stderr
    assert sorted(tree.rglob("*")) == before and not calls(tree)
    lines = ran.stdout.splitlines()
    assert all(any(line.startswith(start) for line in lines) for start in expected), ran.stdout
    makes_venv = any("-m venv .venv" in line for line in lines)
    assert makes_venv == (not script.startswith("tpu_vm"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("tpu_vm.sh run T trane --workdir=a", "trane: must be"),
        ("tpu_vm.sh run T", "must be"),
        ("tpu_vm.sh run --workdir=a train", "--workdir=a"),
        ("tpu_vm.sh stop T host1", "host1"),
        ("tpu_vm.sh logs T 0 1", "1;"),
        ("tpu_vm.sh craete T", "craete"),
        ("gpu.sh trane", "trane: must be"),
        ("slurm.sbatch trane", "trane: must be"),
        ("quickstart.sh a b", "b;"),
        ("cpu_rows.sh data out --seed=1", "--seed=1"),
    ],
)
def test_what_would_be_ignored_or_fail_elsewhere_is_refused_first(tree, words, named):
    shutil.rmtree(tree / ".venv")
    script, *arguments = words.split()
    ran = run(tree, "bash", f"launch/{script}", *arguments)
    assert ran.returncode == 2 and ran.stderr.startswith("error: ") and named in ran.stderr
    assert not calls(tree) and not (tree / ".venv").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_one_that_the_scripts_start(tree, name):
    line = run(tree, "bash", "launch/gpu.sh", name, "--dry_run").stdout.splitlines()[-1]
    assert line == f".venv/bin/ancra {name}"


def test_without_a_command_nothing_is_installed(tree):
    shutil.rmtree(tree / ".venv")
    ran = run(tree, "bash", "launch/gpu.sh")
    assert "./launch/gpu.sh train" in ran.stdout and not (tree / ".venv").exists(), ran


def test_what_dry_run_prints_is_what_runs(tree):
    words = ("bash", "launch/gpu.sh", "report", "--output=it's here", "--workdirs=a,b*")
    printed = run(tree, *words, "--dry_run").stdout
    run(tree, *words)
    ran = calls(tree)
    run(tree, "bash", "-c", printed)
    assert calls(tree) == ran == ["ancra report --output=it's here --workdirs=a,b*"]


def test_an_extra_that_is_not_there_is_refused(tree):
    """As pip only warns of it, and JAX then trains on the CPU."""
    ran = run(tree, "bash", "launch/gpu.sh", "install", CUDA="11")
    assert ran.returncode == 2 and "cuda11" in ran.stderr and not calls(tree)
    assert not (tree / ".venv/installed-cuda11").exists()


@pytest.mark.skipif(not shutil.which("flock"), reason="needs flock")
def test_of_several_processes_one_makes_the_environment(tree):
    (tree / ".venv/installed-cuda13").unlink()
    words = ("bash", "-c", "for i in 1 2 3; do launch/gpu.sh install & done; wait")
    assert run(tree, *words).returncode == 0
    assert calls(tree) == [
        "python -m pip install --quiet --upgrade pip",
        "python -m pip install --quiet --editable .[all,cuda13]",
    ]


def test_a_pod_is_created_trains_stops_continues_and_is_deleted(tree):
    def tpu(*words):
        ran = run(tree, "bash", "launch/tpu_vm.sh", *words)
        return ran.returncode, ran.stdout + ran.stderr

    def finished():
        deadline = time.monotonic() + 30
        while (ran := tpu("logs", "T"))[1].count("devices") < 2:
            assert time.monotonic() < deadline
        return ran[1]

    subprocess.run(["git", "init", "--quiet"], cwd=tree, check=True)
    (tree / ".gitignore").write_text(".venv/\n")
    cloud = tree.parent / "cloud"
    assert tpu("create", "T", "--accelerator-type=v4-16", "--version=V")[0] == 0
    assert tpu("copy", "T")[0] == 0
    for host in ("host0", "host1"):
        assert (cloud / host / "ancra_jax/launch/environment.sh").is_file()
        assert not (cloud / host / "ancra_jax/.venv").exists()
        for name in ("ancra", "python"):
            write_program(cloud / host / f"ancra_jax/.venv/bin/{name}", PROGRAMS[name])
    calls(tree)
    assert tpu("install", "T")[0] == 0
    assert sum(line.endswith("--editable .[all,tpu]") for line in calls(tree)) == 2

    arguments = ("run", "T", "train", "--config=c.py:m", "--workdir=/shared/a b")
    assert tpu(*arguments)[0] == 0
    status, text = tpu(*arguments)
    assert status != 0 and "there is a run already" in text
    status, text = tpu("stop", "T")
    assert status == 0 and text.count("stopped, saved") == 2
    started = [line for line in calls(tree) if line.startswith("ancra")]
    assert started == 2 * ["ancra train --config=c.py:m --workdir=/shared/a b --distributed"]
    assert tpu(*arguments)[0] == 0
    assert "stopped, saved" in finished()
    assert tpu("delete", "T")[0] == 0
    assert not any(cloud.iterdir())


def test_a_slurm_job_queues_again_until_it_is_finished(tree):
    words = ("train", "--config=c.py:m", "--workdir=/runs/a")
    ran = run(tree, "sbatch", "launch/slurm.sbatch", *words, SIGNAL="TERM")
    assert ran.returncode == 0, ran.stderr
    command = " ".join(("ancra", *words))
    step = f"srun --ntasks-per-node=1 --cpus-per-task=16 .venv/bin/{command}"
    assert calls(tree)[1:] == [step, command, "scontrol requeue 7", step, command]


def test_a_slurm_job_that_fails_does_not_queue_again(tree):
    ran = run(tree, "sbatch", "launch/slurm.sbatch", "train", "--workdir=a", SIGNAL="KILL")
    assert ran.returncode == 137
    assert "scontrol" not in "".join(calls(tree))


def test_an_array_has_a_run_for_each_number(tree):
    words = ("evaluate", "--workdir=/runs/a-%a")
    run(tree, "sbatch", "--array=0 1", "launch/slurm.sbatch", *words)
    ran = [line for line in calls(tree) if line.startswith("ancra")]
    assert ran == [f"ancra evaluate --workdir=/runs/a-{number}" for number in range(2)]


def test_nodes_train_together_with_all_their_gpus(tree):
    (tree / "saved").touch()
    words = ("sbatch", "--nodes=2", "launch/slurm.sbatch")
    ran = run(tree, *words, "train", "--workdir=a")
    assert "ancra train --workdir=a --distributed" in calls(tree)
    assert ran.stdout.splitlines() == ["devices 0,1"]
    run(tree, *words, "evaluate", "--workdir=a")
    assert "ancra evaluate --workdir=a --distributed" in calls(tree)
    run(tree, *words, "report", "--output=a")
    assert " --nodes=1 --ntasks=1 .venv/bin/ancra report --output=a" in calls(tree)[1]


def test_the_example_of_skypilot_starts_a_process_a_node(tree):
    (tree / "saved").touch()
    task = yaml.safe_load((tree / "launch/skypilot.yaml").read_text())
    assert task["envs"]["WORKDIR"] is None  # SkyPilot asks for it
    variables = {
        "WORKDIR": "gs://bucket/ancra",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
        "SKYPILOT_NODE_RANK": "1",
    }
    setup = run(tree, "bash", "-c", task["setup"])
    assert setup.returncode == 0
    assert calls(tree) == ["python -m pip install --quiet gcsfs s3fs"]
    run(tree, "bash", "-c", task["run"], **(task["envs"] | variables))
    assert calls(tree) == [
        "ancra train --config=cifar10.py:trades_ancra --workdir=gs://bucket/ancra --distributed"
        " --coordinator_address=10.0.0.1:8476 --num_processes=2 --process_id=1"
    ]


def test_the_example_of_a_jobset_starts_a_process_a_pod(tree):
    (tree / "saved").touch()
    jobset = yaml.safe_load((tree / "launch/jobset.yaml").read_text())
    (hosts,) = jobset["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    path = f"{tree}/.venv/bin:{os.environ['PATH']}"
    run(tree, *container["command"], PATH=path, JOB_COMPLETION_INDEX="1")
    name = jobset["metadata"]["name"]
    assert calls(tree) == [
        "ancra train --config=cifar10.py:trades_ancra --workdir=/shared/ancra --distributed"
        f" --num_processes={job['completions']} --process_id=1"
        f" --coordinator_address={name}-{hosts['name']}-0-0.{name}:8476"
    ]
