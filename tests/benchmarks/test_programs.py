"""Compiled programs, counted: the reader of their text, and numbers that must not grow."""

import json
import re
from dataclasses import replace

import pytest

from ancra_jax.errors import UsageError
from ancra_jax.ops.target import platform, traced_for
from benchmarks import hlo, programs, targets
from tests.support import ROOT, small_runs  # noqa: F401  registers the network "tiny"

TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%taken (p: u8[100,4], q: s32[]) -> f32[2,4] {
  %p = u8[100,4]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = u8[2,4]{1,0} dynamic-slice(%p, %q, %zero), dynamic_slice_sizes={2,4}
  ROOT %converted = f32[2,4]{1,0} convert(%slice)
}

%body (carry: (s32[], bf16[2,8,8,4])) -> (s32[], bf16[2,8,8,4]) {
  %carry = (s32[], bf16[2,8,8,4]{3,2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = bf16[2,8,8,4]{3,2,1,0} get-tuple-element(%carry), index=1
  %w = bf16[4,3,3,4]{3,2,1,0} constant({...})
  %conv = (bf16[2,8,8,4]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %y = bf16[2,8,8,4]{3,2,1,0} get-tuple-element(%conv), index=0
  ROOT %next = (s32[], bf16[2,8,8,4]{3,2,1,0}) tuple(%i, %y)
}

%condition (carry: (s32[], bf16[2,8,8,4])) -> pred[] {
  %carry = (s32[], bf16[2,8,8,4]{3,2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %limit = s32[] constant(10)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (data: u8[100,4], at: s32[], x: bf16[2,8,8,4], g: f32[3,3,4,4]) -> (f32[2,4]) {
  %data = u8[100,4]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %x = bf16[2,8,8,4]{3,2,1,0} parameter(2)
  %g = f32[3,3,4,4]{3,2,1,0} parameter(3)
  %batch = f32[2,4]{1,0} fusion(%data, %at), kind=kLoop, calls=%taken
  %start = (s32[], bf16[2,8,8,4]{3,2,1,0}) tuple(%at, %x)
  %loop = (s32[], bf16[2,8,8,4]{3,2,1,0}) while(%start), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"10"}}
  %reduced = f32[3,3,4,4]{3,2,1,0} all-reduce(%g), to_apply=%add
  ROOT %result = (f32[2,4]{1,0}) tuple(%batch)
}
"""
MAP, KERNEL = 2 * 8 * 8 * 4 * 2, 4 * 3 * 3 * 4 * 2
GRADIENT = 3 * 3 * 4 * 4 * 4


@pytest.mark.parametrize("noted", [True, False])
def test_kernels_bytes_and_operations_are_those_of_the_text(noted):
    # Without a note of the compiler, as for TPUs, the loop's condition tells its length.
    module = hlo.parse(TEXT if noted else TEXT.replace("known_trip_count", "other"))
    found = {kernel.instruction.name: kernel for kernel in hlo.kernels(module)}
    assert {name: kernel.times for name, kernel in found.items()} == {
        "batch": 1,
        "conv": 10,
        "less": 10,
        "reduced": 1,
    }
    # Of the data set only two rows are read, and written as float32; the number is read too.
    assert hlo.moved(found["batch"], module) == 2 * 4 + 4 + 2 * 4 * 4
    assert hlo.moved(found["conv"], module) == 2 * MAP + KERNEL
    assert hlo.operations(found["conv"], module) == 2 * 2 * 8 * 8 * 4 * 4 * 9
    assert hlo.convolutions(module) == {"bf16": 1}
    assert hlo.collectives(list(found.values())) == [
        {"kind": "all-reduce", "bytes": GRADIENT, "times": 1}
    ]
    assert hlo.oddities(module) == []
    odd = TEXT.replace("f32[2,4]{1,0} convert", "f64[2,4]{1,0} convert")
    assert hlo.oddities(hlo.parse(odd)) == ["float64: converted"]


TPU_TEXT = """HloModule jit_step, is_scheduled=true

%short (a: f32[2,128]) -> f32[2,128] {
  %a = f32[2,128]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %less = f32[2,128]{1,0:T(8,128)S(1)} negate(%a)
}

%long (b: f32[2,128]) -> f32[2,128] {
  %b = f32[2,128]{1,0:T(8,128)S(1)} parameter(0)
  %first = f32[2,128]{1,0:T(8,128)S(1)} exponential(%b)
  ROOT %second = f32[2,128]{1,0:T(8,128)S(1)} negate(%first)
}

ENTRY %main (p: f32[8,128], n: s32[], w: f32[128,128]) -> f32[2,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %n = s32[]{:T(128)} parameter(1)
  %w = f32[128,128]{1,0:T(8,128)} parameter(2)
  %more = s32[]{:T(128)} add(%n, %n)
  %near = ((f32[8,128]{1,0:T(8,128)}), f32[2,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p)
  %x = f32[2,128]{1,0:T(8,128)S(1)} slice-done(%near)
  %y = f32[2,128]{1,0:T(8,128)S(1)} convolution(%x, %w), dim_labels=bf_io->bf
  %z = f32[2,128]{1,0:T(8,128)S(1)} conditional(%more, %y, %y), branch_computations={%short, %long}
  %far = (f32[2,128]{1,0:T(8,128)}, f32[2,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%z)
  ROOT %result = f32[2,128]{1,0:T(8,128)} copy-done(%far)
}
"""


def test_of_a_tpu_what_stays_beside_its_cores_is_not_moved():
    module = hlo.parse(TPU_TEXT)
    found = list(hlo.kernels(module))
    kinds = {kernel.instruction.name: hlo.kind(kernel, module) for kernel in found}
    assert kinds == {
        "near": "slice", "y": "matrix product", "first": "other", "second": "other", "far": "copy"
    }  # fmt: skip
    moved = [hlo.moved(kernel, module) for kernel in found]
    assert moved == [2 * 128 * 4, 128 * 128 * 4, 0, 0, 2 * 128 * 4]
    assert hlo.convolutions(module) == {} and hlo.operations(found[1], module) == 0


# Of a step on an accelerator: the passes that are trained, and those through the network or back to
# its images that are not: 2 in the loop of an attack, 1 for TRADES' natural logits. AWP
# differentiates the loss twice.
PASSES = {
    "natural": (1, 0),
    "pgd_at": (1, 2),
    "trades": (2, 3),
    "trades_ancra": (3, 2),
    "mart_ancra": (3, 2),
    "trades_awp": (4, 3),
}


def convolutions(row, layers):
    """Those that a step needs; the images of a trained pass receive no gradient."""
    trained, others = PASSES[row]
    return trained * (3 * layers - 1) + others * layers


# Of the paper's ResNet-18, which has 20 layers.
CONVOLUTIONS = {"natural": 59, "pgd_at": 99, "trades": 178}
CONVOLUTIONS |= {"trades_ancra": 217, "mart_ancra": 217, "trades_awp": 296}
KEPT = sorted(file.stem for file in programs.RESULTS.glob("*.json"))


def arguments(**changes):
    """A program of a network that no other test traces."""
    return programs.parse([f"--{name}={value}" for name, value in changes.items()])


@pytest.mark.parametrize("row", PASSES)
def test_steps_for_accelerators_have_no_more_convolutions_than_they_need(row):
    config = programs.configuration(row, arguments(width=3), images=2)
    name, layers = ("resnet18", 20) if row == "trades_ancra" else ("tiny", 5)
    config = replace(config, model=replace(config.model, name=name))
    with traced_for("gpu"):
        assert platform() == "gpu"
        step, operands, _ = programs.program(row, config, targets.devices("cpu"))
        text = step.trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
    found = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(found) == convolutions(row, layers)
    assert all(line.count("xbf16>") == 3 for line in found)
    assert "xf64>" not in text and "callback" not in text
    # Images are gathered, feature maps are not.
    assert not re.search(r"stablehlo.gather.*> tensor<(\d+x){3}(?!3x)\d+xb?f\d+>", text)
    assert {row: convolutions(row, layers=20) for row in PASSES} == CONVOLUTIONS


@pytest.mark.parametrize("target", KEPT)
def test_the_kept_programs_are_what_they_should_be(target):
    rows = json.loads((programs.RESULTS / f"{target}.json").read_text())["rows"]
    assert "trades_ancra" in rows
    for row, facts in rows.items():
        needed = CONVOLUTIONS.get(row.removesuffix("_parts"))
        assert not needed or facts["convolutions"] == {"bf16": needed}, row
        assert set(facts["convolutions"]) == {"bf16"} and facts["settings"]["width"] == 64
        assert all("loop of unknown length" in oddity for oddity in facts["oddities"]), row
        assert sum(group["times"] for group in facts["collectives"]) <= 100, row
        gathered = [g["bytes"] for g in facts["collectives"] if g["kind"] != "all-reduce"]
        images = facts["devices"] * facts["settings"]["batch_size"]
        assert sum(gathered) < 32 * images, row  # numbers; an image has 3,072 bytes
    if target == "h100":
        assert rows["trades_ancra"]["kernels"] < 1700 and rows["trades_ancra"]["bytes"] < 34.5e9


@pytest.mark.parametrize("target", KEPT)
def test_the_pages_tables_are_those_of_the_kept_programs(target):
    page = (ROOT / "docs" / "performance.md").read_text()
    for row, facts in json.loads((programs.RESULTS / f"{target}.json").read_text())["rows"].items():
        counted = [f"{facts['bytes'] / 1e9:.1f}", f"{facts['kernels']:,}"]
        counted.append(f"{facts['temporaries'] / 2**20:.0f}")
        floor = f"{facts['floor_ms']:.1f}"
        if target == "h100":
            forwards = "—" if facts["forwards"] is None else f"{facts['forwards']:.0f}"
            cells = [row, forwards, str(facts["convolutions"]["bf16"]), *counted, floor]
            cells.append(f"{facts['floor_ms_with_launches']:.1f}")
        else:
            groups = {True: [], False: []}
            for group in facts["collectives"]:
                groups[group["kind"] == "all-reduce"].append((group["times"], group["bytes"]))
            number = sum(times for times, _ in groups[True])
            sent, gathered = (sum(n * size for n, size in groups[key]) for key in (True, False))
            cells = [target, row, *counted, str(number), f"{sent / 1e6:.1f}"]
            cells += [f"{gathered / 1e3:.1f}", floor]
        assert f"| {' | '.join(cells)} |" in page


def test_the_command_compiles_for_the_cpu_and_keeps_other_rows(tmp_path, capsys):
    output = tmp_path / "new" / "cpu.json"
    output.parent.mkdir()
    output.write_text(json.dumps({"rows": {"pgd40": {"kernels": 1}}}))
    flags = "--target=cpu --rows=natural --width=3 --batch_size=2 --dtype=float32"
    assert programs.main([*flags.split(), f"--output={output}"]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert rows["pgd40"] == {"kernels": 1}
    natural = rows["natural"]
    assert 2.5 < natural["forwards"] < 3.1 and natural["oddities"] == []
    assert natural["kernels"] > 100 and natural["donated"] > 0 and natural["temporaries"] > 0
    assert natural["collectives"] == []
    with pytest.raises(SystemExit):
        programs.main(["--rows=apgd,nonsense"])
    assert "'nonsense'; allowed are natural" in capsys.readouterr().err


def test_a_missing_compiler_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setenv(targets.CUDA_VARIABLE, "/none/xla_cuda_plugin.so")
    with pytest.raises(UsageError, match=r"ANCRA_CUDA_PLUGIN=/none/.*: there is no such file"):
        targets.compiler("gpu")
    monkeypatch.delenv(targets.CUDA_VARIABLE)
    monkeypatch.delenv(targets.TPU_VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind, package in {"gpu": "jax-cuda12-pjrt==0", "tpu": "libtpu==0"}.items():
        with pytest.raises(UsageError, match=f"pip install --no-deps --target=compilers {package}"):
            targets.compiler(kind)


def test_a_step_for_an_h100_is_bfloat16_and_has_no_oddities():
    try:
        devices = targets.devices("h100")
    except UsageError as error:
        pytest.skip(str(error))
    facts = programs.examine("natural", arguments(width=3, batch_size=2), devices)
    assert facts["convolutions"] == {"bf16": CONVOLUTIONS["natural"]}
    assert facts["oddities"] == [] and facts["kernels"] <= 450
