"""A GPU that is pretended: code for CUDA runs on a machine without one.

    python -m pytest -n 0 -p tests.support.pretend_gpu.plugin -m gpu

`gpu.cpp` registers a device under CUDA's dispatch key in the CPU build of torch; `build.py` compiles it once per
version of torch; `device.py` has it loaded together with torch and lets `torch.cuda` answer for it; `plugin.py` does so
for a run of pytest, and `in_every_process/` for the processes that it starts.

It shows device bugs (a tensor or generator on the wrong device), memory, launches, uploads and waits. It cannot show
kernels, the attention that CUDA would choose, CUDA's numerics, or races, but for one: numbers of the device that the
host reads before they have arrived.
"""
