"""Random weights that leave no part of a model idle: not biases, norms, statistics or position tables."""

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def randomize(module: Module, seed: int = 0) -> Module:
    """Fill every parameter and batch-norm statistic so that activations stay near 1; returns the module.

    Fresh modules start with zero biases, zero position tables and norms that do nothing: a comparison on
    those weights would pass with any of them left out.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, std: float, mean: float = 0.0) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    norms: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.BatchNorm2d)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(part, norms):
                normal(parameter, 0.2, mean=1.0 if name == "weight" else 0.0)
            elif name == "weight" and not isinstance(part, nn.Embedding):
                fan_in = parameter.shape[0] if isinstance(part, nn.ConvTranspose2d) else parameter[0].numel()
                normal(parameter, fan_in**-0.5)
            else:
                normal(parameter, 0.5)
        if isinstance(part, nn.BatchNorm2d):
            normal(part.running_mean, 0.2)
            part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=generator))
    return module.eval()
