"""Inside a mixture of experts: routing weights, and the output and neurons of single experts.

Current transformers keep all experts in one parameter, so there is no module to hook. An expert's neurons and output
are computed again here from that parameter, only for the experts asked for; an edit is added to the layer's output as
the difference that it makes to that expert's contribution, which is exact because contributions are summed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Act = Callable[[str, int, Tensor], Tensor]
"""(site name, expert, tensor (token …)) -> the tensor to go on with."""


def routing(weights: Tensor, chosen: Tensor, n_experts: int) -> Tensor:
    """Routing weights as (token expert): each token's weight of each expert, zero where it was not chosen.

    `weights`, `chosen` (token choice) as the router gives them.
    """
    dense = torch.zeros(len(weights), n_experts, dtype=weights.dtype, device=weights.device)
    return dense.scatter_add(1, chosen, weights)


def as_choices(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (token expert) as a router gives them: every expert is a choice, most with weight zero."""
    return dense, torch.arange(dense.shape[1], device=dense.device).expand_as(dense)


def contributions(module: nn.Module, hidden: Tensor, dense: Tensor, experts: list[int], act: Act) -> Tensor:
    """What the edits of `act` add to the layer's output (token d_model).

    An expert's contribution is its output times its routing weight, zero for tokens not routed to it; its neurons
    likewise are shown as zero for tokens that it does not see.
    """
    total = torch.zeros_like(hidden)
    for expert in experts:
        weight = dense[:, expert, None]
        seen = weight != 0
        gate, up = nn.functional.linear(hidden, module.gate_up_proj[expert]).chunk(2, dim=-1)  # pyright: ignore[reportIndexIssue]
        neurons = torch.where(seen, module.act_fn(gate) * up, 0)  # pyright: ignore[reportCallIssue]
        down: Tensor = module.down_proj[expert]  # pyright: ignore[reportIndexIssue]

        def add_up(n: Tensor, down: Tensor = down, weight: Tensor = weight) -> Tensor:
            return (nn.functional.linear(n, down) * weight).to(hidden.dtype)

        before = add_up(neurons)
        edited = act("expert.neuron", expert, neurons)
        middle = before if edited is neurons else add_up(edited)
        after = act("expert", expert, middle)
        if after is not before:
            total = total + (after - before)
    return total
