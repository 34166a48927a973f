"""Our kernels in ONNX Runtime on the CPU: real files by real sessions, beside ONNX Runtime's own operators."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

import torch  # noqa: E402

import ribsr  # noqa: E402
from engines import EngineError, open_engine  # noqa: E402
from engines.metadata import read_stamp  # noqa: E402
from engines.ort import CPU  # noqa: E402
from engines.ort_kernels import rewritten_for_cpu  # noqa: E402
from export import convert  # noqa: E402
from export.canonical import trace  # noqa: E402
from export.fold import fold  # noqa: E402
from plugins import library, operators  # noqa: E402
from ribsr.base.sizes import Size  # noqa: E402
from tests.conftest import load_golden  # noqa: E402
from tests.engines import fakes, halves  # noqa: E402
from tests.plugins.test_fuse import small  # noqa: E402

opened = partial(open_engine, device="cpu", runtime="onnxruntime")
"""Not what `auto` finds faster."""

pytestmark = pytest.mark.usefixtures("cpu_library")

LIMIT = 1e-5
"""Between two ways to compute in float32, of values up to 1."""

SIZES = ((16, 24), (13, 10), (9, 33), (1, 1), (70, 65))
"""Multiples of windows and not, below a window, and above the largest."""


@cache
def bare(name: str) -> onnx.ModelProto:
    """A golden model's graph without body, or that of one block of a released network."""
    if "_" not in name:
        return small(name, 17)
    return trace(fold(load_golden(name).model())[0], 17)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The canonical file of a model in float32, or another precision and form."""

    def make(name: str, precision: str = "fp32", form: str = "canonical") -> Path:
        path = tmp_path_factory.mktemp("files") / f"{name}.onnx"
        graph = bare(name) if precision == "fp32" else halves.of(bare(name), precision)
        shuffles = [node for node in graph.graph.node if node.op_type == "DepthToSpace"]
        scale = onnx.helper.get_node_attr_value(shuffles[-1], "blocksize")
        return halves.write(path, graph, form, precision, scale)

    return make


@pytest.fixture(scope="module")
def light(file: Callable[..., Path]) -> Path:
    return file("sst-light")


def own(path: Path, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime's own operators make of it."""
    with opened(path, kernels=False) as engine:
        assert engine.describe().form == read_stamp(path).form
        return engine.run(x)


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(a.astype(np.float64) - b).mean()))


# float32


@pytest.mark.parametrize("name", ["sst_cyclic_x2", "sst_shifted_x2", "sst_pixelshuffle_x3", "escrib_x2", "sst-light"])
def test_computes_what_onnxruntime_computes(file: Callable[..., Path], name: str) -> None:
    """At sizes that are multiples of no window, and of batches: dynamic files take all of them."""
    path = file(name)
    with opened(path) as engine:
        told = engine.describe()
        assert (told.device, told.form) == (f"{CPU} ({library.cpu_isas()[-1]})", "kernel")
        assert (told.precision, told.notes, told.limits.fixed) == ("fp32", (), None)
        for size in SIZES:
            x = fakes.picture(*size)
            if name != "escrib_x2":  # which makes its filters of one picture
                x = np.concatenate([x, fakes.picture(*size, seed=1)])
            y = engine.run(x)
            np.testing.assert_allclose(y, own(path, x), rtol=0, atol=LIMIT)
            assert np.isfinite(y).all()


@pytest.mark.parametrize("name", ["sst", "esc-rib"])
def test_wider_networks_run_too(file: Callable[..., Path], name: str) -> None:
    """Of 180 channels in heads of 30, and layers that are none of ours."""
    path, x = file(name), fakes.picture(17, 22)
    with opened(path) as engine:
        assert engine.describe().form == "kernel"
        np.testing.assert_allclose(engine.run(x), own(path, x), rtol=0, atol=LIMIT)


def test_a_network_of_ours_has_no_convolution_of_the_runtimes_left(light: Path) -> None:
    model = onnx.load_from_string(rewritten_for_cpu(str(light), read_stamp(light), False))
    onnx.checker.check_model(model)
    ops = {node.op_type for node in model.graph.node}
    assert not {"Conv", "MatMul", "LayerNormalization", "Erf", "Sigmoid", "Pad"} & ops
    assert {node.domain for node in model.graph.node} == {"", "ribsr"}
    assert len(model.functions) == 0


def test_files_of_one_size(tmp_path: Path) -> None:
    """As export.onnx writes them, of a size that is no multiple of a window."""
    path = tmp_path / "x2.onnx"
    checkpoint = fakes.write_checkpoint(tmp_path / "x2.pt")
    convert.export_onnx(checkpoint, path, convert.Options(static=Size(21, 13), verify=False))
    x = fakes.picture(21, 13)
    with opened(path) as engine:
        assert (engine.describe().form, engine.describe().batch) == ("kernel", 1)
        np.testing.assert_allclose(engine.run(x), own(path, x), rtol=0, atol=LIMIT)
        with pytest.raises(EngineError, match="takes pictures of 13x21"):
            engine.run(fakes.picture(22, 13))


def test_any_strides(light: Path) -> None:
    x = fakes.picture(20, 30)
    with opened(light) as engine:
        for view in (x[:, :, ::-1], x[..., ::2], x.swapaxes(2, 3)):
            np.testing.assert_array_equal(engine.run(view), engine.run(np.ascontiguousarray(view)))


def test_threads_change_nothing(light: Path) -> None:
    """Bit for bit: neither those of a session nor those that share an engine."""
    pictures = [fakes.picture(30 + 9 * (i % 3), 70 - 5 * i, seed=i) for i in range(6)]
    with opened(light, threads=1) as engine:
        alone = [engine.run(x) for x in pictures]
    for threads in (2, 5):
        with opened(light, threads=threads) as engine, ThreadPoolExecutor(4) as pool:
            for y, expected in zip(pool.map(engine.run, pictures * 2), alone * 2, strict=True):
                np.testing.assert_array_equal(y, expected)


def test_where_the_time_goes(light: Path) -> None:
    with opened(light, threads=1) as engine:
        layers = engine.profile(fakes.picture(40, 40), runs=2)
    names = [node.name for node in onnx.load(str(light)).graph.node if node.op_type == "CyclicWindowAttention"]
    assert set(names) <= {layer.name for layer in layers}
    assert all(layer.milliseconds > 0 for layer in layers if layer.name in names)


# Half precision, and products of bfloat16


@pytest.mark.parametrize("form", ["canonical", "plugin"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_computed_in_float32(file: Callable[..., Path], precision: str, form: str) -> None:
    """With the weights that it has: closer to float32 than float16's own arithmetic."""
    x = fakes.picture(19, 26)
    with opened(file("sst-light", precision, form)) as engine:
        told = engine.describe()
        assert (told.form, told.precision, told.notes) == ("kernel", precision, ())
        y = engine.run(x)
    exact = own(file("sst-light"), x)
    assert 0 < rmse(y, exact) < (0.02 if precision == "bf16" else 0.003)
    if precision == "fp16":
        assert rmse(y, exact) < rmse(own(file("sst-light", "fp16"), x), exact)


def test_what_was_kept_in_float32_changes_nothing(tmp_path: Path) -> None:
    """Where some layers are in float16, casts stand between them and the others."""
    graph = bare("sst-light")
    convolutions = [node.output[0] for node in graph.graph.node if node.op_type == "Conv"]
    mixed = halves.to_half(graph, convolutions[3::7])
    assert sum(node.op_type == "Cast" for node in mixed.graph.node) > 2
    path, x = halves.write(tmp_path / "mixed.onnx", mixed), fakes.picture(19, 26)
    with opened(path) as engine:
        assert rmse(engine.run(x), own(halves.write(tmp_path / "x.onnx", graph, dtype="fp32"), x)) < 0.003
    model = onnx.load_from_string(rewritten_for_cpu(str(path), read_stamp(path), False))
    assert "Conv" not in {node.op_type for node in model.graph.node}


def products_of_bfloat16(path: Path, x: np.ndarray) -> np.ndarray:
    with opened(path, precision="bf16") as engine:
        told = engine.describe()
        assert (told.form, told.precision) == ("kernel", "bf16")
        return engine.run(x)


def test_products_of_bfloat16(light: Path) -> None:
    """Where the CPU has instructions for them; else one line says so."""
    x = fakes.picture(33, 47)
    if "avx512_bf16" not in library.cpu_isas():
        with pytest.raises(EngineError, match="precision bf16 needs our kernels, but this CPU has no AVX512_BF16"):
            opened(light, precision="bf16")
        return
    y, exact = products_of_bfloat16(light, x), own(light, x)
    assert 1e-6 < rmse(y, exact) < 0.01
    with opened(light) as engine:
        np.testing.assert_allclose(engine.run(x), exact, rtol=0, atol=LIMIT)  # the other mode in the same process


@pytest.mark.parametrize("amx", [False, True])
def test_where_products_of_bfloat16_are_slow_it_is_told(
    light: Path, monkeypatch: pytest.MonkeyPatch, amx: bool
) -> None:
    if "avx512_bf16" not in library.cpu_isas():
        pytest.skip("needs AVX512_BF16")
    monkeypatch.setattr("engines.ort.has_amx", lambda: amx)
    with opened(light, precision="bf16") as engine:
        notes = engine.describe().notes
    assert [note for note in notes if "take 1.5 times as long" in note] == list(notes)
    assert bool(notes) == amx


def test_a_cpu_without_bfloat16_is_told(light: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "cpu_isas", lambda: ("baseline", "avx2", "avx512"))
    with pytest.raises(EngineError) as info:
        opened(light, precision="bf16")
    wanted = "precision bf16 needs our kernels, but this CPU has no AVX512_BF16, the instructions for it"
    assert str(info.value) == f"{light}: {wanted}"


def test_precisions_are_those_of_the_file(light: Path, file: Callable[..., Path]) -> None:
    with opened(light, precision="fp32") as engine:
        assert engine.describe().precision == "fp32"
    with pytest.raises(EngineError, match="is in fp32, not in fp16; export it in that precision, or --precision bf16"):
        opened(light, precision="fp16")
    with pytest.raises(EngineError, match="is in fp16, not in bf16; .* or leave out --precision"):
        opened(file("sst-light", "fp16"), precision="bf16")
    with pytest.raises(EngineError, match="precision 'fp64' is unknown"):
        opened(light, precision="fp64")


# What keeps them out


@pytest.mark.parametrize("form", ["mha", "matmul"])
def test_other_forms_run_as_they_are(tmp_path: Path, form: Any) -> None:
    path = halves.write(tmp_path / "a.onnx", bare("sst_cyclic_x2"), form, "fp32")
    with opened(path) as engine:
        told = engine.describe()
        assert (told.device, told.form, told.notes) == (CPU, form, ())
        assert np.isfinite(engine.run(fakes.picture())).all()
    with pytest.raises(EngineError, match=f"precision bf16 needs our kernels, but the form {form} has"):
        opened(path, precision="bf16")


def test_no_kernels_are_asked_for(light: Path, file: Callable[..., Path]) -> None:
    with opened(light, kernels=False) as engine:
        told = engine.describe()
        assert (told.device, told.form, told.notes) == (CPU, "canonical", ())
    with pytest.raises(EngineError, match="precision bf16 needs our kernels, but --no-kernels was given"):
        opened(light, kernels=False, precision="bf16")
    with pytest.raises(EngineError, match="is in plugin form, which needs our kernels, but --no-kernels was given"):
        opened(file("sst-light", "fp16", "plugin"), kernels=False)


def test_a_library_that_is_not_built_is_no_reason_to_complain(
    light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.CPU_VARIABLE, str(tmp_path / "none.so"))
    with opened(light) as engine:
        assert (engine.describe().form, engine.describe().notes) == ("canonical", ())
    with pytest.raises(
        EngineError, match=r"but there is no .*none\.so: python -m plugins\.build --only cpu makes it \(needs a C"
    ):
        opened(light, precision="bf16")


def test_a_library_that_is_broken_is_told(light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.so").write_text("text")
    monkeypatch.setenv(library.CPU_VARIABLE, str(tmp_path / "text.so"))
    with opened(light) as engine:
        told = engine.describe()
        assert told.form == "canonical"
        (note,) = told.notes
    assert re.match(r".*: runs ONNX Runtime's own operators, .* since .*text\.so cannot be loaded", note)
    assert "\n" not in note


def test_an_older_runtime_lends_no_threads(light: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", "1.16.3")
    with opened(light) as engine:
        told = engine.describe()
        assert (told.device, told.form) == (CPU, "canonical")
        assert "since ONNX Runtime 1.16.3 lends them no threads: 1.17 or later does" in told.notes[0]
    with pytest.raises(EngineError, match=r"precision bf16 needs our kernels, but ONNX Runtime 1\.16\.3"):
        opened(light, precision="bf16")


def test_windows_that_they_do_not_take(tmp_path: Path) -> None:
    config = replace(ribsr.config("sst-light"), blocks=1, windows=(130, 8), ranks=(8, 8), heads=(3, 3))
    torch.manual_seed(0)
    graph = trace(fold(ribsr.build(config))[0], 17)
    path = halves.write(tmp_path / "wide.onnx", graph, dtype="fp32")
    with opened(path) as engine:
        assert engine.describe().form == "canonical"
        assert "its windows have sides of 130, ours take 2 to 128" in engine.describe().notes[0]


def test_nodes_that_are_wrong_are_refused_in_one_line(tmp_path: Path, cpu_library: Path) -> None:
    """By the library itself, whatever made the graph."""
    from plugins import channels_last, fuse

    made = channels_last.to_channels_last(fuse.to_plugins(bare("sst-light"), on_cpu=True), on_cpu=True)
    norm = next(node for node in made.graph.node if node.op_type == operators.FEED_FORWARD.name)
    next(attribute for attribute in norm.attribute if attribute.name == "epsilon").f = -1.0
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(cpu_library))
    with pytest.raises(Exception, match="FeedForward: attribute epsilon is -1: it must not be negative"):
        ort.InferenceSession(made.SerializeToString(), options, providers=[CPU])


def _behind_identities(model: onnx.ModelProto) -> None:
    """Weights of convolutions are results of nodes."""
    for node in [node for node in model.graph.node if node.op_type == "Conv"]:
        model.graph.node.insert(0, onnx.helper.make_node("Identity", [node.input[1]], [f"{node.output[0]}/weight"]))
        node.input[1] = f"{node.output[0]}/weight"


def _inlined(model: onnx.ModelProto) -> None:
    from onnx.inliner import inline_local_functions

    model.CopyFrom(inline_local_functions(model))


@pytest.mark.parametrize(("change", "form"), [(_behind_identities, "kernel"), (_inlined, "canonical")])
def test_a_file_that_a_tool_has_changed(
    light: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], form: str
) -> None:
    """What has no node of ours any more runs as it is; metadata says canonical all the same."""
    model = onnx.load(light)
    change(model)
    onnx.save(model, path := tmp_path / "changed.onnx")
    x = fakes.picture()
    with opened(path) as engine:
        told = engine.describe()
        assert told.form == form
        assert (form == "kernel") is not any("a tool has put the attention's body" in note for note in told.notes)
        assert np.abs(engine.run(x) - own(light, x)).max() < LIMIT
