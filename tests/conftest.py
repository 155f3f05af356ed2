"""One thread: the networks here are so small that more threads only slow them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
