"""TensorRT: `engine` runs plans, of which `manifest` tells what they are; `builder` makes them.

What differs between TensorRT's versions is in `versions`, what it says in `messages`, the little of CUDA in `gpu`.
"""
