"""CUDA kernels for ribsr: their sources, their C interface, its build, and the PyTorch operator on it.

`python -m plugins.build` makes the shared library, `plugins.library` calls it, `plugins.torch` registers the operator.
"""
