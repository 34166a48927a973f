"""Damaged and hostile files, harmless ones, and a program that gives them to the commands: `tests/test_hostile.py`.

Nothing in them does more than make a folder, which shows that it ran.
"""

from __future__ import annotations

import builtins
import json
import os
import pickle
import random
import resource
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.testing import CliRunner

from tests.engines import fakes
from tests.resident import memory, start_peak

GIB = 2**30

Case = tuple[str, list[str], str]
"""A command, its arguments, and what the only line has to hold; text that is empty: it may also succeed."""


class Attack:
    """Pickled, a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def shared_lists(depth: int) -> Any:
    """A few hundred bytes whose text would have 2**depth numbers."""
    made: Any = [1, 2]
    for _ in range(depth):
        made = [made, made]
    return made


VALUES: list[Any] = [
    None, True, "2", "\x1b]0;owned\x07", "x" * 10**6, -1, 0, 10**9, 10**30, 1 << 20_000, float("nan"), float("inf"),
    2.5, [], {}, {"a": 1}, [[1]], [10**9], [-1], [1, "a"], [1] * 100_000, shared_lists(40), b"\xff",
]  # fmt: skip

FIELDS = ("name", "dim", "heads", "windows", "ranks", "blocks", "expansion", "upsampler", "scale", "rib_freqs")


def config() -> dict[str, Any]:
    """What fakes.write_checkpoint says of itself."""
    from ribsr import configs

    tiny = configs.SSTConfig("tiny", fakes.DIM, (2, 2), (4, 8), (4, 4), 1, 1.5, "direct")
    return json.loads(json.dumps(configs.to_dict(tiny)))


def foreign() -> dict[str, bytes]:
    """What gets a model's name by accident."""
    return {
        "empty": b"",
        "zeros": bytes(5000),
        "page": b"\n<!DOCTYPE html><html><body>Log in</body></html>",
        "xml": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "text": b"not a model at all\x1b[31m\n" * 40,
        "json": b'{"params": {}}',
        "png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8,
        "gzip": b"\x1f\x8b\x08" + bytes(range(256)) * 8,
        "elf": b"\x7fELF" + bytes(range(256)) * 8,
        "noise": random.Random(0).randbytes(4096),
        "proto0": b"\x80\x02" + random.Random(1).randbytes(600),
    }


def checkpoints(folder: Path) -> Iterator[Path]:
    """Files of torch.save that cannot be loaded."""
    import torch

    good = fakes.write_checkpoint(folder / "good.pt")
    content = torch.load(good, weights_only=True)
    params, own = content["params"], config()
    whole = good.read_bytes()

    def made(name: str, value: Any) -> Path:
        torch.save(value, folder / f"{name}.pt")
        return folder / f"{name}.pt"

    for length in (1, 2, 4, 30, 100, 500, len(whole) // 4, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        path = folder / f"cut{length}.pt"
        path.write_bytes(whole[:length])
        yield path
    for name, text in foreign().items():
        path = folder / f"{name}.pt"
        path.write_bytes(text)
        yield path
    for number, value in enumerate(([1], 3, "x", None, torch.zeros(3), {}, {"epoch": 3}, {"\x1b[2J": 1}, {1: 2})):
        yield made(f"content{number}", value)
    for field in FIELDS:
        for number, value in enumerate(VALUES):
            if field == "name" and value == "2" or field == "expansion" and value == 2.5:
                continue
            yield made(f"{field}{number}", {"ribsr": 1, "config": {**own, field: value}, "params": params})
    for number, version in enumerate((99, "x" * 10**5, shared_lists(40), torch.zeros(3), "\x1b[2J", None)):
        yield made(f"version{number}", {"ribsr": version, "config": own, "params": params})
    yield made("many", {"ribsr": 1, "config": {**own, "windows": [1024] * 2, "blocks": 1000}, "params": params})
    yield made("path", {"ribsr": 1, "config": {**own, "name": "../../x"}, "params": params})
    yield made("unknown", {"ribsr": 1, "config": {**own, "\x1b[2J": 1}, "params": params})
    first = next(iter(params))
    weights: dict[str, Any] = {
        "sparse": torch.eye(6).to_sparse(),
        "meta": torch.zeros(10**9, 10**3, device="meta"),
        "complex": torch.zeros(3, dtype=torch.complex64),
        "whole": torch.zeros(3, dtype=torch.int64),
        "float8": params[first].to(torch.float8_e4m3fn),
        "nan": torch.full_like(params[first], float("nan")),
        "expanded": torch.zeros(1).expand(10**6, 10**6),
        "scalar": torch.zeros(()),
        "number": 3,
    }
    for name, value in weights.items():
        yield made(name, {"ribsr": 1, "config": own, "params": {**params, first: value}})
        yield made(f"bare_{name}", {**params, "proj.weight": value})
    base = torch.zeros(1000)
    yield made("shared", {"ribsr": 1, "config": own, "params": {str(i): base.half() for i in range(3)} | {
        f"view{i}": base[:] for i in range(10_000)}})  # fmt: skip
    yield made("missing", {"ribsr": 1, "config": own, "params": {first: params[first]}})
    yield made("surplus", {"ribsr": 1, "config": own, "params": {**params, "\x1b[2J" * 1000: params[first]}})
    yield made("keys", {"ribsr": 1, "config": own, "params": {**params, (1, 2): params[first]}})
    yield made("twice", {"ribsr": 1, "config": own, "params": {**params, f"module.{first}": params[first]}})
    target = str(folder / "executed")
    for number, call in enumerate(
        (
            Attack(os.mkdir, target),
            Attack(os.system, f"mkdir {target}"),
            Attack(eval, f"__import__('os').mkdir({target!r})"),
            Attack(getattr(builtins, "exec"), f"import os; os.mkdir({target!r})"),  # noqa: B009
        )
    ):
        yield made(f"attack{number}", {"params": {"a": call}})
        for protocol in (0, 2, 4):
            path = folder / f"attack{number}.{protocol}.pt"
            path.write_bytes(pickle.dumps({"params": call}, protocol))
            yield path
    yield from archives(folder)


def archives(folder: Path) -> Iterator[Path]:
    """Zip files that torch did not write, and that would fill the memory."""

    def made(name: str, entries: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(folder / f"{name}.pt", "w", how) as archive:
            for entry, content in entries.items():
                archive.writestr(entry, content)
        return folder / f"{name}.pt"

    yield made("script", {"a/constants.pkl": b"x", "a/code/a.py": b"x", "a/data.pkl": b"x"})
    yield made("zip", {"readme.txt": b"x"})
    yield made("nothing", {})
    yield made("bomb", {"a/data.pkl": b"x", "a/data/0": bytes(2**26), "a/version": b"3"}, zipfile.ZIP_DEFLATED)
    path = made("claims", {"a/data.pkl": b"x", "a/version": b"3\n", "a/data/0": bytes(999)})
    path.write_bytes(path.read_bytes().replace((999).to_bytes(4, "little"), (2**32 - 2).to_bytes(4, "little")))
    yield path
    yield made("pickle", {"a/data.pkl": b"\x80\x02" + b"]" * (2**24), "a/version": b"3\n"})
    yield made("deep", {"a/data.pkl": b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".", "a/version": b"3\n"})


def safetensors(folder: Path) -> Iterator[Path]:
    from safetensors.numpy import save_file

    own = config()
    good = folder / "good.safetensors"
    save_file(fakes.weights(), good, {"ribsr": "1", "config": json.dumps(own)})
    whole = good.read_bytes()
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    headers: dict[str, Any] = {
        "noend": b'{"a":',
        "deep": b'{"a":' * 50_000,
        "list": b"[1]",
        "shape": {"a": {**tensor, "shape": [2**40, 2**20]}},
        "offsets": {"a": {**tensor, "data_offsets": [0, 2**40]}},
        "overlap": {"a": tensor, "b": tensor},
        "dtype": {"a": {**tensor, "dtype": "X9"}},
        "negative": {"a": {**tensor, "shape": [-2]}},
        "metadata": {"a": tensor, "__metadata__": {"ribsr": 1}},
        "version": {"a": tensor, "__metadata__": {"ribsr": "\x1b[2J" * 999}},
        "config": {"a": tensor, "__metadata__": {"ribsr": "1", "config": "[" * 99_999}},
        "windows": {"a": tensor, "__metadata__": {"ribsr": "1", "config": json.dumps({**own, "windows": [20000, 16]})}},
        "blocks": {"a": tensor, "__metadata__": {"ribsr": "1", "config": json.dumps({**own, "blocks": 10**9})}},
    }
    for name, header in headers.items():
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = folder / f"{name}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
        yield path
    for number, content in enumerate(
        (whole[:8], whole[:100], whole[:-1], b"\xff" * 8 + whole[8:], bytes(8) + whole[8:])
    ):
        path = folder / f"cut{number}.safetensors"
        path.write_bytes(content)
        yield path
    for name, content in foreign().items():
        (folder / f"{name}.safetensors").write_bytes(content)
        yield folder / f"{name}.safetensors"


def onnx_files(folder: Path) -> Iterator[Path]:
    import onnx
    from onnx import TensorProto, helper

    good = fakes.write_onnx(folder / "good.onnx")
    whole = good.read_bytes()
    for length in (1, 10, 50, len(whole) // 2, len(whole) - 300, len(whole) - 1):
        (folder / f"cut{length}.onnx").write_bytes(whole[:length])
        yield folder / f"cut{length}.onnx"
    for name, content in {**foreign(), "fields": b"\x08\x01" * 10**6, "huge": b"\x3a" + b"\xff" * 8 + b"\x7f"}.items():
        (folder / f"{name}.onnx").write_bytes(content)
        yield folder / f"{name}.onnx"
    texts = {
        "scale": ["0", "-1", "3", "1e3", "9" * 5000, "[2]", "two", "null", "", "\x1b[2J"],
        "windows": [
            "[]",
            "[[20000,16]]",
            "[[0,8]]",
            "[8]",
            "[[8]]",
            "[" * 99_999,
            "{}",
            "[[8.5,8]]",
            "[[8,8],[8,true]]",
        ],
        "precision": ["fp64", "\x1b[2J", "x" * 10**6, "(absent)"],
        "model": ["\x1b]0;owned\x07", "(absent)", "a\nb"],
        "form": ["\x1b[2J", "(absent)"],
        "version": ["(absent)", "\x9b31m"],
        "checkpoint_sha256": ["(absent)"],
    }
    for field, values in texts.items():
        for number, value in enumerate(values):
            yield fakes.write_onnx(folder / f"{field}{number}.onnx", stamp={f"ribsr.{field}": value})
    yield fakes.write_onnx(folder / "foreign.onnx", stamped=False)

    def changed(name: str, change: Callable[[Any], object]) -> Path:
        model = onnx.load(str(good))
        change(model)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
        return folder / f"{name}.onnx"

    def outside(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../../../../etc/passwd")

    def first(model: Any) -> Any:
        return model.graph.initializer[0]

    def fill(model: Any) -> None:
        model.graph.initializer.append(helper.make_tensor("size", TensorProto.INT64, [1], [2**40]))
        model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["filled"]))
        model.graph.output.append(helper.make_tensor_value_info("filled", 1, None))

    window = helper.make_node("CyclicWindowAttention", ["x"], ["z"], domain="ribsr", window=[16, 16])
    yield changed("dims", lambda model: first(model).dims.__setitem__(0, 2**40))
    yield changed("negative", lambda model: first(model).dims.__setitem__(0, -1))
    yield changed("type", lambda model: setattr(first(model), "data_type", 99))
    yield changed("outside", outside)
    yield changed("input", lambda model: setattr(model.graph.input[0], "name", "x"))
    yield changed("operator", lambda model: setattr(model.graph.node[1], "op_type", "Conv\x1b[2J"))
    yield changed("domain", lambda model: setattr(model.graph.node[1], "domain", "evil"))
    yield changed("opset", lambda model: setattr(model.opset_import[0], "version", 999))
    yield changed("ir", lambda model: setattr(model, "ir_version", 999))
    yield changed("cycle", lambda model: model.graph.node[1].input.__setitem__(0, "output"))
    yield changed("noweight", lambda model: model.graph.initializer.pop())
    yield changed("fill", fill)
    yield changed("shuffle", lambda model: setattr(model.graph.node[5].attribute[0], "i", 4))
    yield changed("window", lambda model: model.graph.node.append(window))


def recipes(folder: Path) -> Iterator[Path]:
    names = ("model", "scale", "output", "train", "validation", "init", "steps", "batch", "crop", "lr", "betas", "clip",
             "warmup", "schedule", "milestones", "ema", "precision", "compile", "seed", "save_every")  # fmt: skip
    base = {"model": "sst-light", "train": ["nowhere"], "output": str(folder / "run")}
    for field in names:
        for number, value in enumerate(({"a": 1}, -1, float("nan"), [[1]], "\x1b[2J")):
            if value != value and field in ("output", "train", "validation", "init"):
                continue  # a folder may be called NaN
            path = folder / f"{field}{number}.yaml"
            path.write_text(json.dumps({**base, field: value}))  # JSON is YAML
            yield path
    merges = "".join(f"k{i}: &k{i}\n  <<: [{', '.join([f'*k{i - 1}'] * 9)}]\n" for i in range(1, 10))
    lists = "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9)}]\n" for i in range(1, 10))
    target = folder / "executed"
    texts = {
        "merge": "k0: &k0 {a: 1}\n" + merges,
        "laughs": "k0: &k0 [1]\n" + lists,
        "tag": f"model: !!python/object/apply:os.mkdir ['{target}']\n",
        "deep": "model: " + "[" * 50_000,
        "blocks": "- " * 60_000,
        "keys": "? " * 60_000,
        "long": "model: sst-light\n" + "# x\n" * 10**6,
        "wide": "steps: " + "9" * 100_000,
        "date": "model: 2001-99-99",
        "tab": "model:\tsst\n\tx: 1",
        "self": "&a [*a]",
        "model": "model: &a [*a]",
        "hex": "model: sst-light\nseed: 0x" + "f" * 50_000,
        "batch": "model: sst-light\nbatch: 1000000000\ntrain: [.]",
        "none": "",
        "latin": "model: \xe9",
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="latin1")
        yield folder / f"{name}.yaml"
    for name, change in {
        "wide": {"dim": 65536, "heads": [1, 1]}, "windows": {"windows": [1024, 1024]}, "blocks": {"blocks": 10**9},
        "name": {"name": "../x"}, "freqs": {"rib_freqs": 64, "windows": [1000, 16]},
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps({**config(), **change}))
        path = folder / f"json_{name}.yaml"
        path.write_text(json.dumps({**base, "model": str(folder / f"{name}.json")}))
        yield path


def manifests(folder: Path) -> Iterator[Path]:
    from dataclasses import asdict

    from tests.engines.trt.test_manifest import manifest

    plan = folder / "good.plan"
    plan.write_bytes(b"engine")
    values = {"format": 2, **asdict(manifest(plan))}
    changes: list[tuple[str, Any]] = [("format", 3), ("format", shared_lists(10)), ("profile", {"min": [1, 3, 8, 8]})]
    changes += [
        (field, value) for field in values for value in ([{"a": []}], "\x1b[2J", None) if value != values[field]
    ]
    changes += [("stamp", {**values["stamp"], field: value}) for field in values["stamp"] for value in (None, [[8]])]
    for number, (field, value) in enumerate(changes):
        if value == values[field] or (field, value) == ("plugin", None):
            continue
        path = folder / f"{field}{number}.plan"
        path.write_bytes(b"engine")
        Path(f"{path}.json").write_text(json.dumps({**values, field: value}))
        yield path


def cases(folder: Path) -> list[Case]:
    """All of them, made in `folder`."""
    picture, out = folder / "picture.png", str(folder / "out.png")
    from PIL import Image

    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(picture)
    makers = {"checkpoints": checkpoints, "safetensors": safetensors, "onnx": onnx_files, "plans": manifests}
    made: list[Case] = []
    for name, maker in makers.items():
        (folder / name).mkdir()
        for path in maker(folder / name):
            arguments = [str(path)] if name == "plans" else [str(path), str(picture), out, "--device", "cpu"]
            made.append(("manifest" if name == "plans" else "upscale", arguments, path.name))
    (folder / "recipes").mkdir()
    made += [("train", [str(path), "--output", str(folder / "run")], path.name) for path in recipes(folder / "recipes")]
    return made


# The program


@click.command()
@click.argument("plan")
def read(plan: str) -> None:
    """Only reads a manifest: opening a plan needs TensorRT."""
    from engines.base import EngineError
    from engines.trt.manifest import read_manifest
    from ribsr.base.command import message

    try:
        read_manifest(plan)
    except EngineError as error:
        raise click.ClickException(message(error)) from None


def main() -> None:
    """Runs cases from stdin under a limit of 1 GiB more than the libraries take; a JSON line each on stdout."""
    import onnxruntime  # noqa: F401
    import torch

    from engines.upscale import main as upscale
    from ribsr.__main__ import train

    torch.mm(torch.zeros(64, 64), torch.zeros(64, 64))  # starts its threads
    commands = {"upscale": upscale, "train": train, "manifest": read}
    most = memory("VmSize") + GIB
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for command, arguments, _ in json.load(sys.stdin):
        start_peak()
        before, start = memory("VmRSS"), time.monotonic()
        result = CliRunner().invoke(commands[command], arguments)
        values = {
            "code": result.exit_code,
            "output": result.stderr,
            "seconds": time.monotonic() - start,
            "memory": memory("VmHWM") - before,
            "error": repr(result.exception),
        }
        print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
