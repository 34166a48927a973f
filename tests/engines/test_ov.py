"""The OpenVINO engine: beside ONNX Runtime, in every form, precision and kind of size; and what it refuses."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import Engine, EngineError, choice, open_engine
from engines.base import NotInstalled, check_finite
from engines.cache import Cache
from engines.compare import RunningReference, prove
from engines.ov import OpenVINOEngine, reason
from ribsr.base import signal_stack
from ribsr.base.installation import pip_install
from ribsr.base.sizes import Size
from tests.engines import fakes
from tests.resident import printed

openvino = pytest.importorskip("openvino")
onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

FORMS = ("canonical", "mha", "attention", "matmul")
SIZES = (Size(37, 50), Size(24, 16), Size(5, 3), Size(1, 1))
"""No multiples of a window, one that is, and less than one."""

EXACT = 1e-5
"""Of values of 0 to 1; both compute in float32."""

has_bfloat16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
in_bfloat16 = pytest.mark.skipif(not has_bfloat16, reason="this CPU has no bfloat16 instructions")

Exported = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose attention matters, with a shifted window."""
    import torch

    import ribsr

    torch.manual_seed(0)
    config = ribsr.SSTConfig(
        name="small", dim=16, heads=(2, 2), windows=(8, 16), ranks=(8, 8), blocks=1, expansion=1.5, upsampler="direct"
    )
    ribsr.save(ribsr.build(config), path := tmp_path_factory.mktemp("ov") / "small.pt")
    return path


@pytest.fixture(scope="module")
def exported(trained: Path) -> Exported:
    from export.convert import Options, export_onnx

    def made(form: Any = "canonical", size: Size | None = None, half: bool = False) -> Path:
        path = trained.with_name(f"{form}.{size}.{half}.onnx")
        if not path.exists():
            options = Options(form, half=half, static=size, opset=23 if form == "attention" else 17, verify=False)
            export_onnx(trained, path, options, say=lambda line: None)
        return path

    return made


@pytest.fixture(scope="module")
def onnxruntime(exported: Exported) -> Iterator[Engine]:
    with open_engine(exported(), runtime="onnxruntime", device="cpu") as engine:
        yield engine


def opened(path: Path, **options: Any) -> OpenVINOEngine:
    engine = open_engine(path, runtime="openvino", **options)
    assert isinstance(engine, OpenVINOEngine)
    return engine


def picture(size: Size, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((batch, 3, *size), dtype=np.float32)


# What it computes


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_what_onnx_runtime_gives(exported: Exported, onnxruntime: Engine, form: str) -> None:
    with opened(exported(form)) as engine:
        told = engine.describe()
        assert (told.runtime, told.form, told.precision, told.batch) == ("openvino", form, "fp32", None)
        for size in SIZES:
            for batch in (1, 2):
                x = picture(size, batch)
                np.testing.assert_allclose(engine.run(x), onnxruntime.run(x), atol=EXACT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [SIZES[0], SIZES[2]], ids=str)
def test_files_of_one_size_do_so_too(exported: Exported, onnxruntime: Engine, form: str, size: Size) -> None:
    with opened(exported(form, size)) as engine:
        assert engine.describe().limits.fixed == size
        np.testing.assert_allclose(engine.run(picture(size)), onnxruntime.run(picture(size)), atol=EXACT)
        with pytest.raises(EngineError, match=rf"takes pictures of {size} only, got 7x9"):
            engine.run(picture(Size(9, 7)))


@pytest.mark.parametrize("form", FORMS)
def test_files_whose_reflection_is_written_with_abs(
    exported: Exported, onnxruntime: Engine, form: str, tmp_path: Path
) -> None:
    """As all were once. OpenVINO drops Abs where it folds constants, which sizes are where they are fixed."""
    model = onnx.load(str(exported(form, SIZES[0])))
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        _write_abs(nodes)
    assert any(node.op_type == "Abs" for part in (model.graph, *model.functions) for node in part.node)
    onnx.save(model, str(path := tmp_path / "old.onnx"))
    x = picture(SIZES[0])
    with opened(path) as engine:
        np.testing.assert_allclose(engine.run(x), onnxruntime.run(x), atol=EXACT)


def _write_abs(nodes: Any) -> None:
    """Abs(x) instead of Max(x, Neg(x))."""
    negated = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Neg"}
    for node in nodes:
        if node.op_type == "Max" and negated.get(node.input[-1]) == node.input[0]:
            node.op_type = "Abs"
            del node.input[1:]


def test_the_bundled_network(tmp_path: Path) -> None:
    from export.convert import Options, export_onnx
    from ribsr import bundled

    export_onnx(
        bundled.find("sst-light-x2"), path := tmp_path / "light.onnx", Options(verify=False), say=lambda line: None
    )
    x = picture(Size(40, 72))
    with opened(path) as engine, open_engine(path, runtime="onnxruntime", device="cpu") as other:
        np.testing.assert_allclose(engine.run(x), other.run(x), atol=EXACT)


@in_bfloat16
@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_told_and_judged_as_half_precision(exported: Exported, trained: Path, form: str) -> None:
    pictures = [("a", picture(Size(40, 56)))]
    with opened(exported(form), precision="bf16") as engine, RunningReference(trained, device="cpu") as reference:
        assert engine.describe().precision == "bf16"
        proof = prove(engine, reference, pictures)
    assert proof.rule.text.startswith("rmse ≤ 2 ×")
    assert proof.failure is None
    assert proof.total.max_error > 1e-4, "or else it is float32"


@pytest.mark.parametrize("form", ["canonical", "mha"])
def test_half_precision_files_run_in_float32(exported: Exported, form: str) -> None:
    path, x = exported(form, half=True), picture(SIZES[0])
    with opened(path) as engine, open_engine(path, runtime="onnxruntime", device="cpu") as other:
        assert engine.describe().precision == "fp16"
        np.testing.assert_allclose(engine.run(x), other.run(x), atol=2e-2)
    with pytest.raises(EngineError, match=r"is in fp16, not in bf16; export it in that precision, or leave out"):
        opened(path, precision="bf16")


def test_nan_comes_out_where_it_does_of_onnx_runtime(exported: Exported, onnxruntime: Engine) -> None:
    x = picture(Size(40, 40))
    x[0, 1, 3, 4] = np.nan
    with opened(exported()) as engine:
        y = engine.run(x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(onnxruntime.run(x)))
    with pytest.raises(EngineError, match="NaN or infinite values"):
        check_finite(y, "a:")


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_threads_share_an_engine(exported: Exported, hint: str) -> None:
    pictures = [picture(Size(9 + i % 5, 30 - i)) for i in range(12)]
    with opened(exported(), hint=hint) as engine:
        serial = [engine.run(x) for x in pictures]
        with ThreadPoolExecutor(4) as pool:
            parallel = list(pool.map(engine.run, pictures * 2))
    for one, other in zip(serial * 2, parallel, strict=True):
        np.testing.assert_array_equal(one, other)


def test_results_are_the_callers_own(exported: Exported) -> None:
    x, canvas = picture(Size(8, 10)), np.zeros((1, 3, 20, 30), np.float32)
    with opened(exported()) as engine:
        y = engine.run(x)
        kept = y.copy()
        engine.run(1 - x)
        np.testing.assert_array_equal(y, kept)
        engine.run_into(x[:, :, ::-1, ::2], canvas[..., 2:12, 5:13], (slice(3, 13), slice(0, 8)))
        expected = engine.run(x[:, :, ::-1, ::2].copy())[..., 3:13, :8]
        np.testing.assert_array_equal(canvas[..., 2:12, 5:13], expected)
        with pytest.raises(EngineError, match="the array to put it in"):
            engine.run_into(x, canvas)


def test_memory_is_given_back_and_taken_again(exported: Exported) -> None:
    x = picture(Size(40, 40))
    with opened(exported()) as engine:
        first = engine.needs(Size(40, 40))
        y = engine.run(x)
        assert engine.needs(Size(40, 40)) == 0
        engine.release()
        assert 0 < (engine.needs(Size(40, 40)) or 0) <= (first or 0)
        np.testing.assert_array_equal(engine.run(x), y)


def test_layers_are_timed(exported: Exported) -> None:
    with opened(exported(), threads=1) as engine:
        layers = engine.profile(picture(Size(64, 64)), runs=2)
        whole = min(engine.timer(picture(Size(64, 64))).once() for _ in range(3))
    assert len({layer.name for layer in layers}) == len(layers) > 10
    assert whole / 20 < sum(layer.milliseconds for layer in layers) < 1000 * whole


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_reaches_the_caller_and_the_engine_goes_on(exported: Exported) -> None:
    small, large = picture(Size(16, 16)), picture(Size(512, 512))
    with opened(exported(), threads=1) as engine:
        expected = engine.run(small)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            _run_for(30, engine, large)
        np.testing.assert_array_equal(engine.run(small), expected)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory of a process")
def test_a_run_without_memory_says_so_and_the_engine_goes_on(exported: Exported) -> None:
    """OpenVINO itself takes sizes of a run that failed for those of the next."""
    script = """
import resource, sys
import numpy as np
from engines import OutOfMemory, open_engine

small, large = np.full((1, 3, 16, 16), 0.5, np.float32), np.zeros((1, 3, 1600, 1600), np.float32)
with open_engine(sys.argv[1], runtime="openvino", threads=1) as engine:
    expected = engine.run(small)
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28, resource.RLIM_INFINITY))
    try:
        engine.run(large)
    except OutOfMemory as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    print((engine.run(small) == expected).all())
"""
    told, same = printed(script, str(exported())).splitlines()
    assert "out of memory on a picture of 1600x1600; give a smaller one" in told
    assert same == "True"


def _run_for(seconds: float, engine: Engine, x: np.ndarray) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        engine.run(x)


# What is kept on disk


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.compiled"))


def test_a_file_is_compiled_once(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture(Size(9, 11))
    with opened(exported(), cache=tmp_path / "new" / "cache") as engine:
        expected = engine.run(x)
    (kept,) = files(tmp_path / "new" / "cache")

    def compile_model(*_: object) -> None:
        raise AssertionError("it is there")

    with monkeypatch.context() as patched:
        patched.setattr(openvino.Core, "compile_model", compile_model)
        with opened(exported(), cache=kept.parent) as engine:
            np.testing.assert_array_equal(engine.run(x), expected)
            assert engine.describe().notes == ()
    kept.write_bytes(kept.read_bytes()[:-100])  # damaged: made again
    with opened(exported(), cache=kept.parent) as engine:
        np.testing.assert_array_equal(engine.run(x), expected)


def test_nothing_else_is_taken_for_it(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(exported().read_bytes())
    told = path.stat()
    for count, options in enumerate(({}, {"threads": 1}, {"hint": "throughput"}), 1):
        opened(path, cache=tmp_path, **options).close()
        assert len(files(tmp_path)) == count
    path.write_bytes(exported("mha").read_bytes())
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    opened(path, cache=tmp_path).close()
    assert len(files(tmp_path)) == 4, "another file of the same name and time"
    monkeypatch.setattr(openvino, "__version__", "2099.1.0-1-x")
    opened(path, cache=tmp_path).close()
    assert len(files(tmp_path)) == 5
    monkeypatch.setattr("engines.ov.RECIPE", -1)
    opened(path, cache=tmp_path).close()
    assert len(files(tmp_path)) == 6


@in_bfloat16
def test_another_precision_is_another_model(exported: Exported, tmp_path: Path) -> None:
    x = picture(SIZES[0])
    for _ in range(2):
        with opened(exported(), cache=tmp_path) as one, opened(exported(), cache=tmp_path, precision="bf16") as other:
            assert np.abs(one.run(x) - other.run(x)).max() > 1e-4
    assert len(files(tmp_path)) == 2


def test_a_folder_that_takes_no_files(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"compiled models cannot be kept where --cache says .*name another folder"):
        opened(exported(), cache=tmp_path / "file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with opened(exported()) as engine:
        (note,) = engine.describe().notes
        assert "compiled models are not kept" in note
        engine.run(picture(Size(3, 4)))


def test_those_not_used_for_long_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.cache.MOST", 2)
    cache = Cache(tmp_path)
    for number in range(3):
        cache.write({"n": number}, b"model")
        os.utime(cache.file({"n": number}), (number, number))
        if number == 1:
            assert cache.read({"n": 0}) == b"model"  # which makes it the newest
    assert [cache.read({"n": number}) for number in range(3)] == [b"model", None, b"model"]
    assert cache.read({"n": 7}) is None


# What is refused


def test_a_closed_engine_says_so(exported: Exported) -> None:
    engine = opened(exported())
    engine.run(picture(Size(3, 4)))
    engine.close()
    engine.close()
    for use in (engine.run, engine.profile, lambda x: engine.timer(x).once()):
        with pytest.raises(EngineError, match="the engine is closed; open it again"):
            use(picture(Size(3, 4)))


def test_wrong_inputs_are_refused(exported: Exported) -> None:
    with opened(exported()) as engine:
        with pytest.raises(EngineError, match=r"must be float32 in \[0, 1\], got uint8"):
            engine.run((picture(Size(3, 4)) * 255).astype(np.uint8))
        with pytest.raises(EngineError, match="every size of the input must be at least 1"):
            engine.run(picture(Size(0, 4)))


def test_without_openvino(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(NotInstalled, match=r"needs OpenVINO, which is not installed: pip install .*\[openvino\]"):
        opened(exported())
    with open_engine(exported(), device="cpu") as engine:
        assert (engine.describe().runtime, engine.describe().chosen) == ("onnxruntime", "")


def test_a_release_that_does_not_do(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "__version__", "2026.2.1-21919-ede283a88e3")
    with pytest.raises(
        EngineError, match=r"OpenVINO 2026\.2\.1 knows too little for these files, 2026\.3 does: pip install"
    ):
        opened(exported())


def test_canonical_files_need_onnx(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(NotInstalled) as info:
        opened(exported(), cache=tmp_path)
    assert pip_install("openvino") in str(info.value)
    assert "--form mha" in str(info.value)
    opened(exported("mha"), cache=tmp_path).close()


def test_files_that_openvino_does_not_run(exported: Exported, tmp_path: Path) -> None:
    plugin = fakes.write_onnx(tmp_path / "p.onnx", form="plugin")
    with pytest.raises(EngineError, match="is in plugin form, which OpenVINO does not run; export it again"):
        opened(plugin)
    model = onnx.load(str(exported("mha")))
    onnx.save(model, str(tmp_path / "e.onnx"), save_as_external_data=True, location="e.data", size_threshold=0)
    with pytest.raises(EngineError, match=r"e\.onnx: keeps its weights in another file; export it again"):
        opened(tmp_path / "e.onnx")
    unknown = onnx.load(str(fakes.write_onnx(tmp_path / "u.onnx")))
    unknown.graph.node[1].op_type = "Convolve"
    onnx.save(unknown, str(tmp_path / "u.onnx"))
    with pytest.raises(EngineError, match=r"u\.onnx: OpenVINO .* cannot load it .*Convolve.*export it again") as info:
        opened(tmp_path / "u.onnx")
    assert "\n" not in str(info.value)


def test_precisions_devices_and_hints_that_there_are_not(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"is in fp32, not in fp16; export it in that precision, or --precision bf16"):
        opened(exported(), precision="fp16")
    with pytest.raises(EngineError, match="OpenVINO runs on the CPU; leave out --device cuda"):
        opened(exported(), device="cuda")
    with pytest.raises(EngineError, match="hint 'speed' is unknown; choose one of latency, throughput"):
        opened(exported(), hint="speed")
    monkeypatch.setattr("engines.ov.capabilities", lambda core: ("FP32",))
    with pytest.raises(EngineError, match="this CPU has no bfloat16 instructions; leave out --precision bf16"):
        opened(exported(), precision="bf16")


def test_what_fails_inside_is_one_line(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("Exception from a.cpp:1:\nCheck failed\nnode 5 is wrong\n")

    with opened(exported()) as engine:
        monkeypatch.setattr(engine, "_infer", failing)
        with pytest.raises(EngineError, match=r"OpenVINO failed on \[1, 3, 3, 4\] \(node 5 is wrong\)$"):
            engine.run(picture(Size(3, 4)))
    assert reason(RuntimeError()) == "RuntimeError"


# What is chosen


@pytest.mark.parametrize("amx", [False, True])
def test_auto_takes_what_was_measured_to_be_faster(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, amx: bool
) -> None:
    monkeypatch.setattr(choice, "has_amx", lambda: amx)
    monkeypatch.setattr(choice, "_our_kernels", tuple)
    with open_engine(exported(), device="cpu") as engine:
        told = engine.describe()
    assert told.runtime == ("openvino" if amx else "onnxruntime")
    assert told.chosen.startswith(f"{told.runtime}: it is faster than")
    assert told.chosen.endswith("AMX")
    assert told.to_json()["chosen"] == told.chosen


@pytest.mark.parametrize(
    ("file", "given", "expected"),
    [
        ({}, {}, ("openvino", "AMX")),
        ({}, {"kernels": ("avx512",)}, ("onnxruntime", "our kernels")),
        ({"form": "mha"}, {"kernels": ("avx512",)}, ("openvino", "AMX")),
        ({"form": "plugin"}, {}, ("onnxruntime", "plugin")),
        ({"precision": "fp16"}, {}, ("onnxruntime", "fp16")),
        ({}, {"gpu": True}, ("onnxruntime", "CPU only")),
        ({}, {"gpu": True, "device": "cpu"}, ("openvino", "AMX")),
        ({}, {"device": "cuda"}, ("onnxruntime", "CPU only")),
        ({}, {"precision": "bf16", "amx": False}, ("openvino", "bf16")),
        ({}, {"precision": "bf16", "kernels": ("avx512_bf16",)}, ("onnxruntime", "our kernels")),
        ({}, {"precision": "bf16", "kernels": ("avx512",)}, ("openvino", "not for this CPU")),
        ({}, {"missing": "onnxruntime"}, ("openvino", "not installed")),
        ({}, {"missing": "openvino"}, ("onnxruntime", "")),
    ],
)
def test_the_rule(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: dict[str, str],
    given: dict[str, Any],
    expected: tuple[str, str],
) -> None:
    path = fakes.write_onnx(tmp_path / "a.onnx", **{"form": "canonical", **file})  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(choice, "has_amx", lambda: given.get("amx", True))
    monkeypatch.setattr(choice, "_has_gpu", lambda: given.get("gpu", False))
    monkeypatch.setattr(choice, "_our_kernels", lambda: given.get("kernels", ()))
    monkeypatch.setattr(choice, "_installed", lambda name: name != given.get("missing"))
    name, why = choice.for_onnx(path, given.get("device", "auto"), given.get("precision"), kernels=True)
    assert name == expected[0]
    assert expected[1] in why


def test_amx_is_told_by_linux(tmp_path: Path) -> None:
    (tmp_path / "with").write_text("processor : 0\nflags\t\t: fpu amx_bf16 amx_tile avx\n\nflags : fpu\n")
    (tmp_path / "without").write_text("model name : amx_tile\nflags\t\t: fpu avx amx_tiles\n")
    assert choice.has_amx(tmp_path / "with")
    assert not choice.has_amx(tmp_path / "without")
    assert not choice.has_amx(tmp_path / "none")


def test_options_say_which_runtime(exported: Exported, tmp_path: Path) -> None:
    with open_engine(exported(), hint="throughput", cache=tmp_path) as engine:
        assert engine.describe().chosen == "openvino: it alone has the option hint, cache"
    with open_engine(exported(), device="cpu", kernels=False) as engine:
        assert engine.describe().chosen == "onnxruntime: it alone has the option kernels"
    for options, message in (
        ({"hint": "latency", "kernels": False}, "no runtime has all of kernels, hint; leave one of them out"),
        ({"runtime": "openvino", "kernels": False}, "kernels can be chosen with onnxruntime only"),
        ({"runtime": "tensorrt"}, "tensorrt does not run such files, onnxruntime and openvino do"),
        ({"runtime": "tflite"}, "runtime 'tflite' is unknown; choose one of auto, pytorch, onnxruntime, openvino"),
    ):
        with pytest.raises(EngineError, match=message):
            open_engine(exported(), **options)  # pyright: ignore[reportArgumentType]


def test_a_description_is_replaced_not_lost(exported: Exported) -> None:
    with opened(exported()) as engine:
        before = engine.describe()
        engine.chosen("a: b")
        assert engine.describe() == replace(before, chosen="a: b")


def test_a_thread_keeps_its_signal_stack(exported: Exported) -> None:
    """OpenVINO sets one of its own, and frees it in whichever thread lets it go: Ctrl-C would end the process."""
    file, before = exported("mha"), signal_stack.current().sp
    engine = OpenVINOEngine(file)
    assert signal_stack.current().sp == before
    engine.run(np.zeros((1, 3, 16, 16), np.float32))
    engine.profile(np.zeros((1, 3, 16, 16), np.float32), runs=1)
    assert signal_stack.current().sp == before
    engine.close()
    assert signal_stack.current().sp == before
