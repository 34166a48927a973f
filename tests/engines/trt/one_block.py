"""A network with random weights that TensorRT builds in seconds: one block of sst-light x2. Needs PyTorch.

    python tests/engines/trt/one_block.py x2.onnx

writes it as export.onnx does: canonical, float32. `test_plans_on_gpu.py` takes it where there is no PyTorch.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory


def main(output: Path) -> None:
    import torch

    import ribsr
    from export.convert import Options, export_onnx

    torch.manual_seed(0)
    config = replace(
        ribsr.config("sst-light", 2),
        name="sst-light-one-block",
        windows=(8, 16, 32),
        heads=(3, 3, 3),
        ranks=(16, 16, 24),
        blocks=1,
    )
    with TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "x2.pt"
        ribsr.save(ribsr.build(config), checkpoint)
        export_onnx(checkpoint, output, Options(verify=False))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    main(Path(sys.argv[1]))
