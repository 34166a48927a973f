"""Kernels for ribsr, for GPUs and CPUs: the table of operators, sources, C interfaces, the build, PyTorch operators.

A row of `plugins.operators` is an operator. `python -m plugins.build` makes the shared library (`plugins.compiler`),
`plugins.library` calls it, `plugins.pytorch` registers the operators with PyTorch, `plugins.testing` makes inputs and
compares with float64. README.md says how to add one.
"""
