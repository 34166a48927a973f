"""Telling this toolkit's files from others without an ONNX package."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import EngineError
from engines.base import Stamp
from engines.metadata import read_properties, read_stamp
from tests.engines import fakes


def test_a_stamp_is_read_back(tmp_path: Path) -> None:
    path = fakes.write_onnx(tmp_path / "a.onnx", scale=3, form="matmul", sha256="ab" * 32)
    assert read_stamp(path) == Stamp("tiny", 3, ((4, 4), (8, 8)), "fp32", "matmul", "0.1.0", "ab" * 32)


def test_properties_equal_those_that_onnx_reads(tmp_path: Path) -> None:
    import onnx

    path = fakes.write_onnx(tmp_path / "a.onnx", stamp={"other": "ünïcode " * 100, "empty": ""})
    expected = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    assert read_properties(path) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stamped": False}, r"made by another tool; make one with python -m export\.onnx"),
        ({"stamp": {"ribsr.windows": "(absent)"}}, r"metadata lacks ribsr\.windows; export it again"),
        ({"stamp": {"ribsr.scale": "two"}}, "metadata is damaged"),
        ({"stamp": {"ribsr.windows": "[8, 16]"}}, "metadata is damaged"),
    ],
)
def test_foreign_and_damaged_stamps(tmp_path: Path, changes: dict, message: str) -> None:
    path = fakes.write_onnx(tmp_path / "a.onnx", **changes)
    with pytest.raises(EngineError, match=message):
        read_stamp(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, onnx_file: Path) -> None:
    whole, path = onnx_file.read_bytes(), tmp_path / "cut.onnx"
    for length in (*range(0, 40), *range(40, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(EngineError, match=r"is empty|not an ONNX file|made by another tool|metadata lacks"):
            read_stamp(path)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "noise.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError):
        read_stamp(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"a\.onnx: no such file"):
        read_stamp(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("entries", "form"),
    [
        ({"ribsr.form": "(absent)", "ribsr.attention": "matmul"}, "matmul"),
        ({"ribsr.form": "mha", "ribsr.attention": "matmul"}, "mha"),
        ({"ribsr.form": "(absent)"}, None),
    ],
)
def test_the_form_is_found_under_its_old_name_too(tmp_path: Path, entries: dict[str, str], form: str | None) -> None:
    path = fakes.write_onnx(tmp_path / "a.onnx", stamp=entries)
    if form is None:
        with pytest.raises(EngineError, match=r"its metadata lacks ribsr\.form; export it again"):
            read_stamp(path)
    else:
        assert read_stamp(path).form == form


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        ({"ribsr.scale": "3"}, r"its metadata says x3, its graph x2; export it again"),
        ({"ribsr.scale": "65"}, r"ribsr\.scale must be 1 to 64, got 65"),
        ({"ribsr.windows": "[[20000, 16]]"}, r"ribsr\.windows must have sides of 1 to 1024"),
        ({"ribsr.windows": "[[8, 8]]"}, "its metadata names other windows than its graph has"),
        ({"ribsr.windows": "[[16, 16], [8, 8]]"}, "its metadata names other windows than its graph has"),
        ({"ribsr.windows": "[[8, 8], [16, 16]]"}, None),
        ({"ribsr.windows": "[[8, 8], [16, 16], [8, 8], [16, 16]]"}, None),
    ],
)
def test_a_stamp_is_compared_with_the_graphs_nodes(tmp_path: Path, stamp: dict[str, str], message: str | None) -> None:
    import onnx
    from onnx import helper

    model = onnx.load(str(fakes.write_onnx(tmp_path / "a.onnx", stamp=stamp)))
    for side in (8, 16, 8, 16):
        model.graph.node.append(
            helper.make_node(
                "CyclicWindowAttention", ["x"], [f"y{side}"], domain="ribsr", window=[side, side], gate_sigmoid=0
            )
        )
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    if message is None:
        assert read_stamp(tmp_path / "a.onnx").scale == 2
    else:
        with pytest.raises(EngineError, match=message):
            read_stamp(tmp_path / "a.onnx")
