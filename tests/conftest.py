"""One torch thread a process: the tests' tensors are small, and several processes share few cores."""

import torch

torch.set_num_threads(1)
