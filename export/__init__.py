"""From a checkpoint to files for a runtime: `python -m export.onnx`."""
