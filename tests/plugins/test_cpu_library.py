"""The library for CPUs: its build, which instruction set runs, what is refused, and that threads change nothing."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from plugins import build, compiler, library, operators
from plugins.operators import ATTENTION_INPUTS, CONVOLUTION, OPERATORS, Operator

torch = pytest.importorskip("torch")

from plugins import testing  # noqa: E402

every = pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.short)

NUMBERS = {
    **{"batch": 2, "height": 9, "width": 21, "channels": 20, "hidden": 33, "outputs": 7, "kernel": 3},
    **{"heads": 2, "head_width": 10, "rank": 7, "window_height": 4, "window_width": 8},
}
ATTRIBUTES: dict[str, Any] = {
    **{"window": [4, 8], "heads": 2, "shift": [3, -2], "scale": 0.3, "gate_sigmoid": True},
    **{"add_gelu": True, "input_gelu": True, "epsilon": 1e-6, "negative_slope": 0.1},
}


def attributes_of(row: Operator) -> dict[str, Any]:
    return {attribute.name: ATTRIBUTES[attribute.name] for attribute in row.attributes}


def inputs_of(row: Operator) -> list[Any]:
    torch.manual_seed(0)
    return [torch.randn(operators.sizes(shape, NUMBERS)) * 0.3 for shape in row.tensors.values()]


# The build


@dataclass(frozen=True)
class Builds:
    """Builds by a program that takes the compiler's part and writes down how it is called."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, machine: str = "x86_64-linux-gnu") -> Builds:
        (folder / "cxx").write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n[ "$1" = -dumpmachine ] && echo {machine} && exit 0\n'
            f'echo "$*" >> {folder}/calls\nwhile [ "$1" != -o ]; do shift; done\necho "$*" > "$2"\n'
        )
        (folder / "cxx").chmod(0o755)
        return cls(folder)

    @property
    def output(self) -> Path:
        return self.folder / "out" / "cpu.so"

    def run(self) -> bool:
        (self.folder / "calls").write_text("")
        return compiler.build_cpu(self.output, cxx=str(self.folder / "cxx"), jobs=1)

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def compiled(self) -> list[tuple[str, str]]:
        """Path below src and instruction set of what the last build compiled, none for what is compiled once."""
        found = []
        for call in self.calls:
            if source := re.search(r" -c (\S+) ", call):
                isa = re.search(r"-DRIBSR_ISA=(\w+)", call)
                found.append((Path(source[1]).relative_to(compiler.SOURCE).as_posix(), isa[1] if isa else ""))
        return found


def test_kernels_are_compiled_once_for_each_instruction_set(tmp_path: Path) -> None:
    builds = Builds.make(tmp_path)
    assert builds.run()
    kernels = [f"{row.short}/cpu.cpp" for row in OPERATORS]
    expected = {(kernel, isa) for kernel in (*kernels, "cpu/cpu.cpp") for isa in library.ISAS[1:]}
    once = {(f"{name}.cpp", "") for name in ("cpu/interface", "runtimes/operators", "runtimes/onnxruntime/cpu")}
    assert sorted(builds.compiled()) == sorted(expected | once)
    for call in builds.calls[:-1]:
        assert ("-march=x86-64-v4" in call) == ("ISA=avx512" in call)
        assert ("-mavx512bf16" in call) == ("ISA=avx512_bf16" in call)
    linked = [Path(name).name for name in re.findall(r"\S+\.o\b", builds.calls[-1])]
    assert len(set(linked)) == len(expected | once)
    last = max(index for index, name in enumerate(linked) if ".baseline." in name)
    assert not any(".avx" in name for name in linked[: last + 1]), "what sets share must be the baseline's"
    assert not builds.run()


def test_other_machines_have_the_baseline_alone(tmp_path: Path) -> None:
    builds = Builds.make(tmp_path, "aarch64-linux-gnu")
    assert builds.run()
    assert {isa for _, isa in builds.compiled()} == {"", "baseline"}


def test_a_header_that_changes_makes_what_includes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "src"
    shutil.copytree(compiler.SOURCE, source)
    for name, folder in (("SOURCE", source), ("RUNTIMES", source / "runtimes")):
        monkeypatch.setattr(compiler, name, folder)
    builds = Builds.make(tmp_path)
    assert builds.run()
    for header, above in (("cpu/kernels.h", {"cpu/interface.cpp", "cpu/cpu.cpp"}), ("shared/map.h", set())):
        with (source / header).open("a") as file:
            file.write("// changed\n")
        assert builds.run() == bool(above)
        assert {name for name, _ in builds.compiled()} == above
    with (source / "shared/cpu.h").open("a") as file:
        file.write("// changed\n")
    assert builds.run()
    assert {f"{row.short}/cpu.cpp" for row in OPERATORS} <= {name for name, _ in builds.compiled()}


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("NVCC", "CUDA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    access = compiler.os.access
    monkeypatch.setattr(compiler.os, "access", lambda path, mode: Path(path).name != "nvcc" and access(path, mode))


@pytest.mark.usefixtures("no_nvcc")
def test_a_machine_without_nvcc_gets_the_cpus_library(tmp_path: Path) -> None:
    builds = Builds.make(tmp_path)
    command = ["--cxx", str(tmp_path / "cxx"), "-o", str(tmp_path / "out" / "kernels.so")]
    result = CliRunner().invoke(build.main, command)
    assert result.exit_code == 0
    made, left_out = result.output.splitlines()
    assert made == f"{tmp_path}/out/libribsr_cpu.so: built"
    assert left_out.startswith("the libraries for GPUs are left out: nvcc not found on the PATH")
    assert builds.calls
    for asked in (["--only", "gpu"], ["--nvcc", "no-such-nvcc"]):
        (tmp_path / "calls").write_text("")
        result = CliRunner().invoke(build.main, [*command, *asked])
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1
        assert builds.calls == []


@pytest.mark.usefixtures("no_nvcc")
def test_the_cpus_library_alone(tmp_path: Path) -> None:
    Builds.make(tmp_path)
    command = ["--only", "cpu", "--cxx", str(tmp_path / "cxx"), "-o", str(tmp_path / "out" / "kernels.so")]
    result = CliRunner().invoke(build.main, command)
    assert (result.exit_code, result.output) == (0, f"{tmp_path}/out/libribsr_cpu.so: built\n")


def test_compilers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(compiler.BuildError, match="--cxx names 'no-such-cxx'"):
        compiler.find_cxx("no-such-cxx")
    monkeypatch.setenv("CXX", "no-such-cxx")
    with pytest.raises(compiler.BuildError, match="CXX names 'no-such-cxx'"):
        compiler.find_cxx()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(compiler.NoCompiler, match="no C\\+\\+ compiler on the PATH"):
        compiler.find_cxx()
    Builds.make(tmp_path)
    (tmp_path / "cxx").rename(tmp_path / "clang++")
    assert compiler.find_cxx() == tmp_path / "clang++"


def test_exports_the_c_interface_and_onnxruntimes(built_for_cpu: Path) -> None:
    nm = shutil.which("nm") or pytest.skip("needs nm")
    said = subprocess.run([nm, "-D", "--defined-only", built_for_cpu], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in said.stdout.splitlines()}
    functions = {row.function for row in OPERATORS} | {f"{row.function}_workspace" for row in OPERATORS}
    assert {row.function for row in OPERATORS} <= names
    assert names - functions == {
        "RegisterCustomOps",
        "ribsr_cpu_isas",
        "ribsr_error_message",
        "ribsr_interface_version",
    }


# Loading


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(library.CPU_VARIABLE, str(tmp_path / "none.so"))
    library.load_cpu.cache_clear()
    with pytest.raises(library.LibraryError, match=r"none\.so does not exist: build it with"):
        library.cpu_isas()


# Instruction sets


@pytest.mark.usefixtures("cpu_library")
def test_instruction_sets() -> None:
    """The baseline is everywhere; what is not there is refused by name, and `auto` is the best that is."""
    isas = library.cpu_isas()
    assert isas[0] == "baseline"
    assert isas == library.ISAS[1 : 1 + len(isas)]
    inputs, attributes = inputs_of(CONVOLUTION), attributes_of(CONVOLUTION)
    for isa in library.ISAS[1 + len(isas) :]:
        with pytest.raises(library.LibraryError, match=f"this CPU, or this build, lacks {isa}$"):
            testing.on_cpu(CONVOLUTION, *inputs, isa=isa, **attributes)
    (best,) = testing.on_cpu(CONVOLUTION, *inputs, isa=isas[-1], **attributes)
    (auto,) = testing.on_cpu(CONVOLUTION, *inputs, **attributes)
    assert torch.equal(auto, best)


@pytest.mark.usefixtures("cpu_library")
def test_products_of_bfloat16_where_there_are_instructions_for_them() -> None:
    inputs, attributes = inputs_of(CONVOLUTION), attributes_of(CONVOLUTION)
    if "avx512_bf16" in library.cpu_isas():
        testing.on_cpu(CONVOLUTION, *inputs, bfloat16_products=True, **attributes)
    else:
        with pytest.raises(library.LibraryError, match="this CPU has no AVX512_BF16"):
            testing.on_cpu(CONVOLUTION, *inputs, bfloat16_products=True, **attributes)


@every
@pytest.mark.usefixtures("cpu_library")
def test_every_set_computes_what_the_table_says(row: Operator) -> None:
    """In float32, and with products of bfloat16, by whatever instructions; the same with any number of threads."""
    inputs, attributes = inputs_of(row), attributes_of(row)
    expected = testing.exact(row, *inputs, **attributes)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for isa in library.cpu_isas():
        for bfloat16, limit in ((False, 1e-6), (True, 1e-2)):
            outs = testing.on_cpu(row, *inputs, isa=isa, bfloat16_products=bfloat16, **attributes)
            errors = [testing.relative_error(out, one) for out, one in zip(outs, expected, strict=True)]
            assert max(errors) <= limit, (isa, bfloat16)
            for threads in (2, 5):
                again = testing.on_cpu(row, *inputs, isa=isa, bfloat16_products=bfloat16, threads=threads, **attributes)
                assert all(torch.equal(one, other) for one, other in zip(outs, again, strict=True)), (isa, threads)


# Refusals


@pytest.fixture
def params(cpu_library: Path) -> Callable[..., operators.Params]:
    """Right parameters of an operator, but for changes. Nothing may be read from their addresses."""

    def make(row: Operator, **changes: Any) -> operators.Params:
        values = row.values([operators.sizes(shape, NUMBERS) for shape in row.tensors.values()], **attributes_of(row))
        maps = {name: operators.Map(4096 * (2 + i), 1, 1, 1, 1) for i, name in enumerate(row.maps)}
        pointers = dict.fromkeys(row.pointers, 4096)
        return row.params(**{"dtype": library.FLOAT32, **values, **maps, **pointers, **changes})

    return make


def refused(params: operators.Params, executor: library.Executor | None = None) -> str:
    with pytest.raises(library.LibraryError) as error:
        library.call_cpu(params, executor)
    return str(error.value)


@every
def test_parameters_are_checked(params: Callable[..., operators.Params], row: Operator) -> None:
    assert "dtype 1 is not float32 (3)" in refused(params(row, dtype=library.FLOAT16))
    assert "all must be positive" in refused(params(row, height=0))
    assert "at most 2^20" in refused(params(row, width=2**21))
    for name in row.pointers:
        if name != "workspace":
            assert "an array is null" in refused(params(row, **{name: None})), name
    for name in row.maps:
        told = refused(params(row, **{name: operators.Map(4096 * 50, 9, 9, 1, 1)}))
        assert f"{ {'x': 'in'}.get(name, name) } has channel stride 9: it must be channels-last" in told
        if name not in row.optional:
            assert "an array is null" in refused(params(row, **{name: operators.Map(None, 1, 1, 1, 1)})), name
    for name in {"channels", "hidden", "outputs", "heads", "head_width", "rank"} & set(row.integers):
        assert "positive" in refused(params(row, **{name: 0})), name
    if "epsilon" in row.floats:
        assert "epsilon is nan" in refused(params(row, epsilon=float("nan")))


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        (CONVOLUTION, {"kernel": 2}, "kernel is 2: it must be 1 or 3"),
        (CONVOLUTION, {"negative_slope": float("inf")}, "negative_slope is inf"),
        (operators.DEPTHWISE_CONV3X3, {"epilogue": 2}, "epilogue 2 is unknown"),
        (operators.DEPTHWISE_CONV3X3, {"input_gelu": 2}, "input_gelu is 2"),
        (operators.CYCLIC_WINDOW_ATTENTION, {"window_width": 129}, "each side must be 2 to 128"),
        (operators.CYCLIC_WINDOW_ATTENTION, {"scale": 0.0}, "scale is 0"),
        (operators.CYCLIC_WINDOW_ATTENTION, {"gate_sigmoid": 2}, "gate_sigmoid is 2"),
    ],
)
def test_parameters_of_one_operator_are_checked(
    params: Callable[..., operators.Params], row: Operator, changes: dict[str, Any], message: str
) -> None:
    assert message in refused(params(row, **changes))


@pytest.mark.parametrize(
    ("row", "same"),
    [
        (operators.CYCLIC_WINDOW_ATTENTION, ("qkv", "out")),
        *((row, ("x", "out")) for row in (CONVOLUTION, operators.DEPTHWISE_CONV3X3, operators.FEED_FORWARD)),
        *((ATTENTION_INPUTS, same) for same in (("x", "qkv"), ("x", "gate"), ("qkv", "gate"))),
    ],
)
def test_results_need_memory_of_their_own(
    params: Callable[..., operators.Params], row: Operator, same: tuple[str, str]
) -> None:
    assert "must not overlap" in refused(params(row, **dict.fromkeys(same, operators.Map(4096, 1, 1, 1, 1))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"struct_size": 8}, "struct_size is 8, this library expects"),
        ({"isa": 5}, "isa 5 is unknown: use 0 to 4"),
        ({"isa": -1}, "isa -1 is unknown"),
        ({"bfloat16_products": 2}, "bfloat16_products is 2: it must be 0 or 1"),
        ({"threads": 0}, "threads is 0: it must be positive"),
    ],
)
def test_executors_are_checked(params: Callable[..., operators.Params], changes: dict[str, int], message: str) -> None:
    executor = library.Executor.of()
    for name, value in changes.items():
        setattr(executor, name, value)
    assert message in refused(params(CONVOLUTION), executor)


def test_callers_of_another_version_are_refused(cpu_library: Path) -> None:
    handle = ctypes.CDLL(str(cpu_library))
    handle.ribsr_error_message.restype = ctypes.c_char_p
    assert handle.ribsr_attention(None, None) == 1
    assert handle.ribsr_error_message() == b"params is null"
    assert handle.ribsr_attention(ctypes.byref(operators.CYCLIC_WINDOW_ATTENTION.params(struct_size=8)), None) == 1
    assert b"struct_size is 8" in handle.ribsr_error_message()
