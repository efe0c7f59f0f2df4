"""Muon: momentum whose update is made orthogonal, the optimiser that the K2 report trains its matrices with.

AdamW scales each number by itself; Muon gives every direction of a matrix the same step, so that rare directions are
learnt too. For the small vision tower this decides between seeing and guessing.
Source: Muon is scalable for LLM training, arXiv 2502.16982, section 2; Kimi K2, arXiv 2507.20534, section 2.1.
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

# M matrices of one shape   R rows   C columns, R <= C


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of each matrix (M, R, C), R <= C, towards 1 by Newton-Schulz iterations.

    The quintic's coefficients trade exactness for speed: values end between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)  # (M, R, C)
    for _ in range(steps):
        gram = x @ x.mT  # (M, R, R)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # (M, R, C)
    return x


class Muon(torch.optim.Optimizer):
    """For weights of two or more axes; a convolution's kernel counts as (out, everything else).

    The update is scaled by 0.2 * sqrt(longer side), which matches the size of AdamW's updates, so both share one
    learning rate. Matrices of one shape are orthogonalised together; `map_shapes` may run the shapes in threads.
    """

    def __init__(
        self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0,
        map_shapes: Callable = map,
    ):  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.map_shapes = map_shapes

    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[_matrix_shape(param)].append(param)
            # Longest first, so that no thread is left alone with the largest work.
            shapes = sorted(by_shape.values(), key=lambda params: -sum(param.numel() for param in params))
            list(self.map_shapes(lambda params, group=group: self._step_shape(params, group), shapes))

    @torch.no_grad()
    def _step_shape(self, params: list[Tensor], group: dict) -> None:
        updates = []
        for param in params:
            momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
            momentum.mul_(group["momentum"]).add_(param.grad)
            nesterov = param.grad.add(momentum, alpha=group["momentum"]).flatten(1)
            updates.append(nesterov.mT if nesterov.shape[0] > nesterov.shape[1] else nesterov)
        stacked = orthogonalise(torch.stack(updates))
        scale = 0.2 * max(stacked.shape[1:]) ** 0.5
        for param, update in zip(params, stacked, strict=True):
            rows, columns = _matrix_shape(param)
            update = update.mT if rows > columns else update
            param.mul_(1 - group["lr"] * group["weight_decay"])
            param.add_(update.reshape(param.shape), alpha=-group["lr"] * scale)


def _matrix_shape(param: Tensor) -> tuple[int, int]:
    return param.shape[0], param[0].numel()
