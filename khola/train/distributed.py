"""Several processes that train one model, started by torchrun.

With "ddp" every process keeps all weights and the gradients of a step are added up once, after its last micro-batch. With "fsdp" every
process keeps a share of each tensor; torch gathers a block's weights when it runs and scatters its gradients (FSDP2). Sums over
processes are plain sums: the loop has already divided by the count of the whole step.

Source   PyTorch FSDP, arXiv:2304.11277; `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from khola.ops.torch_ops import DTYPES
from khola.train.model import Trainee


@dataclass(frozen=True, kw_only=True)
class Group:
    """The processes of a run; one alone by default."""

    rank: int = 0
    world: int = 1
    sharded: bool = False
    """Weights, gradients and moments here are shares of whole ones."""
    ours: bool = False
    """Made by `joined`, so that `leave` ends it."""

    @property
    def first(self) -> bool:
        """Whether this process writes and talks."""
        return self.rank == 0

    @property
    def factor(self) -> int:
        """What a loss is multiplied by before its gradients: FSDP takes the mean over processes where a sum is meant."""
        return self.world if self.sharded else 1

    def total(self, number: float) -> float:
        """The sum of a number over all processes."""
        if self.world == 1:
            return number
        found = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(found)
        return float(found)

    def add_up(self, sums: dict[str, Tensor], masters: Mapping[str, Tensor]) -> None:
        """Gradients summed over all processes, in place; FSDP has done it."""
        if self.world == 1 or self.sharded:
            return
        for name, master in masters.items():
            gradient = sums.setdefault(name, torch.zeros_like(master))
            dist.all_reduce(gradient)

    def squares(self, here: Tensor) -> float:
        """A sum of squares over all shares."""
        return self.total(float(here)) if self.sharded else float(here)

    def leave(self) -> None:
        """End the group, if it began here."""
        if self.ours:
            dist.destroy_process_group()

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


def joined(parallel: str) -> Group:
    """The group that torchrun started this process in, or this process alone."""
    if not dist.is_torchelastic_launched():
        return Group()
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Group(rank=dist.get_rank(), world=dist.get_world_size(), sharded=parallel == "fsdp", ours=ours)


def shard(model: Trainee, group: Group) -> None:
    """Leave this process its share of every tensor; masters are shares from here on."""
    if not group.sharded:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for name, parameter in model.named():
        parameter.data = model.masters[name] if name in model.masters else parameter.data.to(model.wide)
    policy = MixedPrecisionPolicy(param_dtype=DTYPES[model.dtype], reduce_dtype=model.wide, cast_forward_inputs=False)
    mesh = init_device_mesh(model.device.type, (group.world,))
    for module in (*model.whole.blocks, model.whole):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    model.adopt()


def unshard(model: Trainee, group: Group) -> None:
    """Let every process hold all weights again, to write them; masters become whole too."""
    model.masters = {name: whole(one, model.parameters[name]) for name, one in model.masters.items()}
    if group.sharded:
        for module in (model.whole, *model.whole.blocks):
            cast(Any, module).unshard()


def gathered(value: Any, group: Group) -> list[Any]:
    """One JSON value of every process, in order of their ranks."""
    if group.world == 1:
        return [value]
    found: list[Any] = [None] * group.world
    dist.all_gather_object(found, value)
    return found


def whole(tensor: Tensor, like: Any) -> Tensor:
    """A share as the whole tensor, in every process; `like` is the parameter that it is a share of."""
    from torch.distributed.tensor import DTensor

    if not isinstance(like, DTensor):
        return tensor
    return DTensor.from_local(tensor, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()


def share(tensor: Tensor, like: Any) -> Tensor:
    """This process's share of a whole tensor."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements).to_local()
