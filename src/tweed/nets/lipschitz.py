"""Networks of Lipschitz constant one: the LipSwish activation, and clipping of linear layers.

Kidger et al., "Efficient and accurate gradients for neural SDEs" (NeurIPS 2021, arXiv 2105.13493), Section 5: a critic that
is the solution of a differential equation must not amplify its input at any of its many steps, and a penalty on gradients
would need a derivative of the solver's derivative. So the vector fields are kept 1-Lipschitz by construction, in the
maximum norm: `|A x| <= |x|` where no entry of A (out, in) exceeds 1 / in.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.errors import InputError

LIPSWISH_SCALE = 0.909
"""1.1 is a bound of the slope of `x sigmoid(x)` (the largest is 1.0998); this is its reciprocal (Chen et al., 2019)."""

_FLAT = (nn.Tanh, nn.ReLU, nn.Identity, nn.Sigmoid, nn.Softplus)


class LipSwish(nn.Module):
    """`0.909 x sigmoid(x)`: smooth, and of Lipschitz constant one."""

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return LIPSWISH_SCALE * torch.nn.functional.silu(x)


@torch.no_grad()
def clip_linear(net: nn.Module) -> None:
    """Clamps the weights of every linear layer of `net` to [-1/in, 1/in], in place; biases are left as they are.

    To be called after each step of the optimiser; a network that fulfils it already is not changed.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear):
            bound = 1.0 / max(module.in_features, 1)
            module.weight.clamp_(-bound, bound)


@torch.no_grad()
def lipschitz_bound(net: nn.Sequential) -> float:
    """A bound of the Lipschitz constant of a chain of layers in the maximum norm: the product of largest row sums.

    Raises:
        InputError: a layer is neither linear nor an activation of Lipschitz constant one.
    """
    bound = 1.0
    for module in net:
        if isinstance(module, nn.Linear):
            bound *= module.weight.double().abs().sum(1).max().item() if module.weight.numel() else 0.0
        elif not isinstance(module, (LipSwish, *_FLAT)):
            raise InputError(
                f"net: a {type(module).__name__} is in it; expected linear layers and 1-Lipschitz activations"
            )
    return bound
