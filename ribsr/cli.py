"""Where the toolkit's programs start: in the one package whose name is ours, so that it can tell if others' are
in the way."""

from __future__ import annotations

import pkgutil
from functools import partial

from ribsr.base.installation import check_folders


def _start(program: str) -> None:
    """Runs one of the programs that `tools.cli` lists."""
    try:
        check_folders("engines", "export", "plugins", "tools")
    except ImportError as error:
        raise SystemExit(f"Error: {error}") from None
    pkgutil.resolve_name("tools.cli:start")(program)


main = partial(_start, "ribsr")
upscale = partial(_start, "ribsr-upscale")
export_onnx = partial(_start, "ribsr-export")
export_trt = partial(_start, "ribsr-export-trt")
parity = partial(_start, "ribsr-parity")
latency = partial(_start, "ribsr-latency")
evaluate = partial(_start, "ribsr-evaluate")
train = partial(_start, "ribsr-train")
