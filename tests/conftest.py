"""One thread for each process of the tests, whoever starts them.

Several tests fork; a child would wait for ever for the OpenMP threads of its parent.
"""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)
