"""TensorRT: `engine` runs plans, of which `manifest` tells what they are; `builder` makes them.

`versions` finds TensorRT and knows what each version can, `messages` what it says, `gpu` the little of CUDA.
"""
