"""The processes of one run, as torchrun starts them; gloo where there is no accelerator."""

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """How many there are and which this is; the same object wherever it is asked."""
    return PartialState(cpu=on_cpu())


def on_cpu() -> bool:
    return not torch.accelerator.is_available()
