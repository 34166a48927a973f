"""CUDA kernels for ribsr: their sources, their C interface, their build, and the operators around them; see README.md.

`python -m plugins.build` makes the shared library (`plugins.compiler`), `plugins.library` calls it, `plugins.pytorch`
registers the PyTorch operators.
"""
