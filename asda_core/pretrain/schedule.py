"""The learning rate and the optimisers."""

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from asda_core.config import OptimizerConfig, RunConfig
from asda_core.errors import PluginError

RESTART_SHRINK = 0.1
"""Factor applied to the rates at each restart of the released cosine. **Source**: fairseq's `lr_shrink`."""


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of update `step` (from 0): linear warm-up, then a cosine to `floor_lr` at `num_steps`.

    **Source**: released cosine schedule. **Differs**: the release gives its first update the rate `floor_lr` and jumps
    to a tenth of the peak at the end; here update 0 gets `peak / warmup` and the cosine ends at the floor. The schedule
    "fairseq_cosine" is the released one, "constant" stays at the peak. "inverse_sqrt" is that of Vaswani et al. 2017,
    section 5.3, parametrised by its peak.
    """
    if config.schedule == "fairseq_cosine":
        return fairseq_cosine(step, num_steps, config)
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.peak_lr
    if config.schedule == "inverse_sqrt":
        return max(config.floor_lr, config.peak_lr * math.sqrt(max(1, config.warmup_steps) / (step + 1)))
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.floor_lr + 0.5 * (config.peak_lr - config.floor_lr) * (1 + math.cos(math.pi * min(1.0, progress)))


def is_peak_reached(config: RunConfig) -> bool:
    """Whether the warm-up of a run ends before the run does; True for a run without steps."""
    return config.steps == 0 or config.optimizer.warmup_steps < config.steps


def warmup_warning(config: OptimizerConfig, end: str) -> str:
    """Sentence about a warm-up that lasts until `end`, such as "steps 100", or longer."""
    duration = f"optimizer.warmup_steps {config.warmup_steps} is not less than {end}"
    return f"{duration}: the learning rate will not reach its peak."


def fairseq_cosine(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Released learning rate of update `step` (from 0): linear from `floor_lr`, cosine, restarts after `num_steps`.

    Each restart multiplies peak and floor by 0.1. A floor above the peak is lowered to the peak.

    **Source**: fairseq's cosine scheduler with its defaults, as the released recipes use it.
    """
    peak, floor = config.peak_lr, min(config.floor_lr, config.peak_lr)
    if step < config.warmup_steps:
        return floor + (peak - floor) * step / config.warmup_steps
    period = max(1, num_steps - config.warmup_steps)
    restarts, elapsed = divmod(step - config.warmup_steps, period)
    shrink = RESTART_SHRINK**restarts
    return shrink * (floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * elapsed / period)))


class FairseqAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay that adds epsilon before the bias correction.

    `p -= lr wd p;  p -= lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)`

    Equal to AdamW for typical gradients, with smaller steps for gradients near epsilon (1e-8).

    **Source**: fairseq's Adam, with which ASDA and EAT were trained.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a GPU gets one call per operation for all, not seven for each."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        states = [self._advanced_state(parameter) for parameter in parameters]
        means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        beta1, beta2 = group["betas"]
        steps = [int(state["step"]) for state in states]  # on the CPU
        rates = [group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step) for step in steps]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, means, roots, [-rate for rate in rates])

    def _advanced_state(self, parameter: Tensor) -> dict[str, Any]:
        """Return the state of a parameter with its step count incremented."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        return state


def decays(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix or a kernel, which weight decay applies to, and not a norm or bias."""
    return parameter.squeeze().ndim > 1


def no_decay_ids(*modules: nn.Module) -> frozenset[int]:
    """Return the ids of parameters of any shape that must not decay: tokens, positions, lambda, rates.

    A module lists its own in a method `no_weight_decay() -> Collection[str]`; as in timm, from which the convention
    comes, it may list names that do not exist.

    Raises:
        PluginError: a module's method returns no collection of names.
    """
    ids = set()
    for module in (module for root in modules for module in root.modules()):
        if callable(names := getattr(module, "no_weight_decay", None)):
            parameters, exempt = dict(module.named_parameters()), names()
            if isinstance(exempt, str) or not isinstance(exempt, Collection):
                where = f"no_weight_decay of {type(module).__name__}"
                raise PluginError(f"{where} must return a collection of parameter names, not {exempt!r}.")
            ids |= {id(parameters[name]) for name in exempt if name in parameters}
    return frozenset(ids)


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, exempt_ids: Collection[int] = ()
) -> torch.optim.Optimizer:
    """Build the optimiser of the trainable parameters; arguments as in `decay_groups`."""
    return optimizer_of(decay_groups(parameters, config, exempt_ids), config)


def decay_groups(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, exempt_ids: Collection[int] = ()
) -> list[dict[str, Any]]:
    """Return the trainable parameters as a group with weight decay and one without; empty groups are omitted.

    Args:
        parameters: those with `requires_grad` are trainable.
        config: whether norms, biases and exempt parameters decay too, as in the release.
        exempt_ids: output of `no_decay_ids` for the modules.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    decayed = [p for p in trainable if (decays(p) and id(p) not in exempt_ids) or config.decay_norms_and_biases]
    decayed_ids = {id(p) for p in decayed}
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if id(p) not in decayed_ids], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def optimizer_of(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimiser of a config over parameter groups; those of PyTorch use the fused implementation."""
    if config.algorithm == "fairseq_adam":
        return FairseqAdam(groups, config.peak_lr, config.betas, config.eps, config.weight_decay)
    if config.algorithm == "adam":
        return torch.optim.Adam(groups, lr=config.peak_lr, betas=config.betas, eps=config.eps, fused=True)
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas, eps=config.eps, fused=True)
