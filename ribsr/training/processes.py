"""The processes of a run: `torchrun` starts one per GPU, and signals reach all of them."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from ribsr.base import interrupt
from ribsr.base.errors import RibsrError

T = TypeVar("T")

PATIENCE = timedelta(days=365)
"""How long processes wait for the first one: as long as it lives, unlike NCCL, which gives up after ten minutes."""

FAREWELL = 5
"""Seconds for which processes outlive the first one where it fails: torchrun ends all of them as soon as one has ended,
and what the first one says must not be cut off."""


class TrainingError(RibsrError, RuntimeError):
    """A run that cannot start or go on; one line: what is wrong, where, what to do."""


@dataclass(frozen=True)
class Process:
    """This process among those of a run, and where it computes. waiting: the group in which others wait for the first
    one; None where there are no others."""

    rank: int
    world: int
    device: torch.device
    waiting: distributed.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether it writes files and talks."""
        return self.rank == 0

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """What the first process does in this block, the others wait for at its end, however long it takes.

        Raises TrainingError in the others where it fails in the first.
        """
        failed = torch.ones(1)
        try:
            yield
            failed.zero_()
        finally:
            if self.waiting is not None:
                distributed.broadcast(failed, 0, group=self.waiting)
        if failed.item():
            time.sleep(FAREWELL)
            raise TrainingError("the first process cannot go on; what it says tells why")

    def agreed(self, *wishes: bool) -> tuple[bool, ...]:
        """Each wish, once any process has it. Does not wait for GPUs."""
        if self.waiting is None:
            return wishes
        votes = torch.tensor(wishes, dtype=torch.float32)
        distributed.all_reduce(votes, group=self.waiting)
        return tuple(bool(vote) for vote in votes)

    def shared(self, value: T) -> T:
        """What the first process gives, in all of them."""
        values = [value]
        if self.waiting is not None:
            distributed.broadcast_object_list(values, 0, group=self.waiting)
        return values[0]

    def gathered(self, value: T) -> list[T]:
        """What every process gives, by rank, in all of them, however long one takes."""
        values = [value] * self.world
        if self.waiting is not None:
            distributed.all_gather_object(values, value, group=self.waiting)
        return values


class Exchange:
    """All gradients in one tensor, which processes add up at once, whatever a CUDA graph holds before and after it.

    The parameters, which become those of the first process, have parts of it as their gradients.
    """

    ALIGNED = 4
    """Elements, 16 bytes: kernels that work on all gradients at once read as many at a time."""

    def __init__(self, parameters: Sequence[Tensor]):
        self._parameters = parameters
        sizes = [-(-parameter.numel() // self.ALIGNED) * self.ALIGNED for parameter in parameters]
        self._joint = torch.zeros(sum(sizes), device=parameters[0].device)
        parts = zip(parameters, self._joint.split(sizes), strict=True)
        self._parts = [part.as_strided(parameter.shape, parameter.stride()) for parameter, part in parts]
        with torch.no_grad():
            _copy(self._parts, parameters)
            distributed.broadcast(self._joint, 0)
            _copy(parameters, self._parts)

    def take(self) -> None:
        """Puts this process's gradients there."""
        _copy(self._parts, [parameter.grad for parameter in self._parameters if parameter.grad is not None])
        for parameter, part in zip(self._parameters, self._parts, strict=True):
            parameter.grad = part

    def sum(self) -> None:
        """Adds those of all processes. Does not wait for the GPU."""
        distributed.all_reduce(self._joint)


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies each source to its target, all in a few kernels."""
    torch._foreach_copy_(list(targets), list(sources))  # pyright: ignore[reportPrivateImportUsage]


@contextmanager
def joined() -> Iterator[Process]:
    """This process, joined with the others where torchrun has started it. Raises TrainingError where only a part of
    what torchrun sets is there."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if "WORLD_SIZE" in os.environ and missing:
        raise TrainingError(
            f"WORLD_SIZE is set, but not {', '.join(missing)}; start processes with torchrun, or unset WORLD_SIZE"
        )
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        yield Process(0, 1, device)
        return
    backend, gpu = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    distributed.init_process_group(backend, device_id=gpu)
    try:
        waiting = distributed.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(waiting, distributed.ProcessGroup)  # which it is in every process of the group
        yield Process(distributed.get_rank(), distributed.get_world_size(), device, waiting)
    finally:
        distributed.destroy_process_group()
        # What holds the group may be part of a cycle; gloo's threads abort the process if they outlive Python.
        gc.collect()


@contextmanager
def interruptions() -> Iterator[list[type[KeyboardInterrupt]]]:
    """Yields a list to which Ctrl-C and SIGTERM only add what is to be raised for them, until the block ends; a second
    Ctrl-C interrupts, but not below torchrun, which sends every process once more what the terminal has sent it.
    Ignored signals stay ignored."""
    came: list[type[KeyboardInterrupt]] = []
    before: dict[int, Any] = {}

    def note(number: int, _: object) -> None:
        came.append(interrupt.Terminated if number == signal.SIGTERM else KeyboardInterrupt)
        if signal.SIGINT in before and "WORLD_SIZE" not in os.environ:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        if threading.current_thread() is threading.main_thread():  # others may not handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, note)
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
