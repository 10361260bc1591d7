"""Every test of the model draws the same random numbers, whichever ran before it."""

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
