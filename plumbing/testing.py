"""Settings of every test, loaded by `.pytest.ini`: reproducible, and the same on each machine."""

import torch
from hypothesis import settings

settings.register_profile(
    "msfn", deadline=None, derandomize=True, database=None, max_examples=20, print_blob=False
)
settings.load_profile("msfn")
torch.set_num_threads(1)  # the tensors are tiny: threads only wait for each other
