"""From an ONNX file of this toolkit to a TensorRT plan: `python -m export.trt`, whose steps are the modules here."""
