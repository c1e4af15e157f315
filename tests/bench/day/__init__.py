"""The parts of `gpu_day.py`. Each takes a `Result` to put its findings into, and whether the GPU is a pretended one."""
