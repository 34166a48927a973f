"""TensorRT: plans and their manifests, what differs between TensorRT's versions, and the little of CUDA it takes."""
