"""One thread: the networks of tests are small, and a machine shared with others makes threads wait for one another."""

import torch

torch.set_num_threads(1)
