"""What the tests of several networks share."""

import torch

from tweed import nets
from tweed.core.random import normal


def shaken(config, seed=0):
    """With noise on all parameters, so that zero-initialised paths are open."""
    net = nets.build(config, seed=seed)
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter += 0.1 * normal((1, *parameter.shape), 7, draw=i)[0]
    return net.eval()
