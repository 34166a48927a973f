"""From an ONNX file of this toolkit to a TensorRT plan: `python -m export.trt`.

`convert` calls the steps in their order: `source` (which file, which sizes), `graph` (form and precision), `build`,
`inspection`, `verify`.
"""
