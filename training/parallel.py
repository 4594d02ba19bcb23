"""A model on several processes: copies of it (DDP), or a part of its weights in each (FSDP2).

FSDP2 gathers the weights of a block when it is needed and gives them back behind it. Parameters of neurons, a few
numbers per channel, stay whole in every process: a neuron checks what it is given, and a part of it is no parameter.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spikeloom.neurons import Neuron
from spikeloom.synapses import NormNeuron
from spikeloom.training.engine import Engine, FlatEngine, Judge, in_one
from spikeloom.training.optim import parameter_groups
from spikeloom.training.optim_settings import Optim
from spikeloom.training.recipe import Recipe
from spikeloom.training.team import Team

SHARDS = "shards"
"""Folder of a checkpoint with the parts of all processes."""


def make_engine(recipe: Recipe, model: nn.Module, judge: Judge, team: Team, captured: bool = False) -> Engine | None:
    """What the recipe asks for on these processes, where the model lies on its device; None: there is one alone.

    captured: steps are to be captured in CUDA graphs.

    Raises:
        ValueError: statistics are to be shared that cannot be.
    """
    if team.size == 1:
        return None
    if recipe.shared_statistics:
        share_statistics(model)
    if recipe.shard:
        return ShardedEngine(model, judge, team)
    if captured:
        _copy_first(model)
        return FlatEngine(model, judge, team)
    return Engine(model, judge, team, _wrapped(model, recipe))


def _send_first(flat: Tensor) -> None:
    dist.broadcast(flat, 0)


def _copy_first(model: nn.Module) -> None:
    """Let all processes begin with the first one's numbers, as DDP does."""
    in_one((*model.parameters(), *model.buffers()), _send_first)


def _wrapped(model: nn.Module, recipe: Recipe) -> nn.Module:
    device = next(model.parameters()).device
    renamed = "forward_sync_buffers" in signature(nn.parallel.DistributedDataParallel).parameters
    buffers: dict[str, Any] = {("forward_sync_buffers" if renamed else "broadcast_buffers"): False}
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=recipe.task == "reconstruct",
        **buffers,
    )


def share_statistics(model: nn.Module) -> None:
    """Let normalisations take the statistics of all processes, those with a neuron in their fused kernel.

    Raises:
        ValueError: the model has normalisations that cannot.
    """
    others = []
    for name, module in model.named_modules():
        if isinstance(module, NormNeuron):
            module.process_group = dist.group.WORLD
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            others.append((name, type(module).__name__))
    if others:
        shown = ", ".join(f"{name} ({kind})" for name, kind in others[:3])
        raise ValueError(
            f"shared_statistics is for models whose normalisations are NormNeuron alone; this one has {len(others)} "
            f"others: {shown}{', ...' * (len(others) > 3)}. Leave --shared-statistics out; each process then takes the "
            "statistics of its own part, as is usual from some 16 recordings per process on."
        )


class ShardedEngine(Engine):
    """Each process keeps a part of every weight, its gradient and the optimiser's averages."""

    def __init__(self, model: nn.Module, judge: Judge, team: Team) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__(model, judge, team)
        device = next(model.parameters()).device.type
        mesh = init_device_mesh(device, (team.size,))
        neurons = (module for module in model.modules() if isinstance(module, Neuron))
        self._whole = {parameter for module in neurons for parameter in module.parameters()}
        blocks = getattr(model, "blocks", None)
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh, ignored_params=self._whole)
        fully_shard(model, mesh=mesh, ignored_params=self._whole)

    def optimizer(self, config: Optim) -> torch.optim.Adam:
        """AdamW; whole parameters in groups of their own, since torch's kernels for many take one kind at a time."""
        groups = [
            {**group, "params": some}
            for group in parameter_groups(self.model, config.weight_decay)
            for kind in (True, False)
            if (some := [p for p in group["params"] if (p in self._whole) == kind])
        ]
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    def norm(self, limit: float) -> Tensor:
        """The norm of the whole gradient, which is then scaled to `limit` at most."""
        whole = [p for p in self.model.parameters() if p in self._whole and p.grad is not None]
        for parameter in whole:
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad /= self.team.size
        parts = [p for p in self.model.parameters() if p not in self._whole and p.grad is not None]
        gradients = ([p.grad for p in some if p.grad is not None] for some in (whole, parts))
        norms = [_whole(nn.utils.get_total_norm(some)) for some in gradients]
        norm = torch.linalg.vector_norm(torch.stack([value.float() for value in norms]))
        for some in (whole, parts):
            nn.utils.clip_grads_with_norm_(some, limit, norm)
        return norm


def _whole(value: Tensor) -> Tensor:
    found: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return found


def whole_weights(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """All weights of a sharded model on the CPU, one after the other; all processes call this. keep: else none."""
    found = {}
    for name, value in model.state_dict().items():
        gathered = _whole(value)
        if keep:
            found[name] = gathered.cpu()
    return found


def parts_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and the optimiser's averages by name, as this process has them."""
    found = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        found |= {
            f"{key}.{name}": value
            for key, value in optimizer.state.get(parameter, {}).items()
            if value.shape == parameter.shape
        }
    return found


def write_parts(folder: str, parts: Mapping[str, Tensor]) -> None:
    """Write the parts of all processes as safetensors files; all of them call this."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _quiet():
        save(dict(parts), storage_writer=HuggingFaceStorageWriter(folder, save_distributed=True))


def read_parts(folder: str, parts: dict[str, Tensor]) -> None:
    """Read what `write_parts` wrote, on however many processes, into tensors of the wanted places and shapes."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with _quiet():
        alone = not (dist.is_available() and dist.is_initialized())
        load(parts, storage_reader=HuggingFaceStorageReader(folder), no_dist=alone)


def load_parts(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Put a model and its fresh optimiser into the state that `write_parts` wrote after `step` steps."""
    _empty_averages(optimizer, step)
    parts = parts_of(model, optimizer)
    read_parts(folder, parts)
    model.load_state_dict({name.removeprefix("model."): v for name, v in parts.items() if name.startswith("model.")})


def load_whole(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Tensor],
    averages: Mapping[int, Mapping[str, Tensor]],
    step: int,
) -> None:
    """Put a sharded model and its fresh optimiser into a state that was saved whole.

    averages: of the optimiser's parameters in the order of `parameter_groups`.
    """
    model.load_state_dict({name: _placed(weights[name], like) for name, like in model.state_dict().items()})
    _empty_averages(optimizer, step)
    order = [parameter for group in parameter_groups(model, 0.0) for parameter in group["params"]]
    for number, parameter in enumerate(order):
        state = optimizer.state[parameter]
        for name in ("exp_avg", "exp_avg_sq"):  # in the same order in all processes, which all take part
            state[name] = _placed(averages[number][name], parameter)


def _empty_averages(optimizer: torch.optim.Optimizer, step: int) -> None:
    if step == 0:
        return
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        averages = {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(float(step)), **averages}


def _placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole value, divided as another tensor is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    moved = value.to(like.device).clone()
    return distribute_tensor(moved, like.device_mesh, like.placements) if isinstance(like, DTensor) else moved


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch tells its own developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
