"""Training: `train(recipe)` makes a model from pictures, and goes on from where it was when it was interrupted.

The state after step n is written to `state.pt` of the output folder, whole or not at all: step, weights, averaged
weights and optimizer. Nothing else has a state: learning rate and crops follow from the step and the recipe's seed, and
the models draw no random numbers. The averaged weights stand beside it as an own checkpoint, MODEL-xSCALE.safetensors.
"""

from __future__ import annotations

import copy
import csv
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ribsr import benchmark, checkpoint
from ribsr.base import interrupt
from ribsr.base.errors import first_line, shown
from ribsr.base.files import amount, atomic, check_folder, locked
from ribsr.base.pictures import pictures_in, to_input, to_pixels
from ribsr.benchmark import DataError
from ribsr.configs import CONFIGS
from ribsr.layers import RIBModel
from ribsr.models import build
from ribsr.training import fast
from ribsr.training.data import Batches, Crops, read_pairs, storage_device
from ribsr.training.processes import Exchange, Process, TrainingError, interruptions, joined
from ribsr.training.recipe import Recipe, to_dict
from ribsr.training.report import Report

STATE_FORMAT = 1
STATE_PARTS = {"recipe", "step", "model", "average", "optimizer"}

TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
"""How tables are opened: sets have their folders' names, which need not be text."""

MOST_NAMED = 5
"""Pictures of the validation that are named where they cannot be scored; the others are counted."""

FREE_FIELDS = ("output", "validation", "log_every", "validate_every", "save_every", "compile")
"""Fields of a recipe that may change between a run and its continuation: the weights do not depend on them.

(`compile` rounds differently, no more than another GPU does.)
"""


def weights_path(recipe: Recipe) -> Path:
    """Where a run writes its averaged weights."""
    return Path(recipe.output) / f"{recipe.network().name}-x{recipe.scale}.safetensors"


def train(recipe: Recipe, stop_after: float | None, report: Report) -> None:
    """Trains to the recipe's last step, or to the first one after `stop_after` seconds, and writes the state there.

    Goes on from the output folder's state.pt if there is one. Raises DataError before anything takes long (`check`),
    TrainingError (another recipe's state there, another run in the folder, loss or weights not finite),
    CheckpointError; KeyboardInterrupt after Ctrl-C or SIGTERM, with the state of the last step written (several
    processes all stop after the same step).
    """
    with joined() as process, ExitStack() as held:
        sets: dict[str, list[Path]] = {}
        with process.ahead():
            if process.first:
                sets = check(recipe, process.world)
                held.enter_context(alone(Path(recipe.output)))
        Run(recipe, process, report if process.first else Report(), process.shared(sets)).go(stop_after)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes the output folder and holds it; nobody else may write there. Raises TrainingError if somebody does, or
    where no folder can be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"is no folder, and none can be made there ({error.strerror})"
        raise TrainingError(f"output {folder}: {reason}; give another output") from None
    check_folder(folder)
    with locked(folder / ".lock") as free:
        if not free:
            raise TrainingError(
                f"{folder}: another run is training into this folder; wait for it, stop it, or give another output"
            )
        yield


class Run:
    """A run in progress. sets: what `check` finds."""

    def __init__(self, recipe: Recipe, process: Process, report: Report, sets: dict[str, list[Path]]):
        self.recipe, self.process, self.report, self.sets = recipe, process, report, sets
        self.folder = Path(recipe.output)
        self.state_path = self.folder / "state.pt"
        state = read_state(self.state_path, recipe)
        model = initial_model(recipe) if state is None else build(recipe.network())
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        if state is not None:
            self._restore(model, state["model"])
            self._restore(self.average, state["average"])
        fast.place(self.average, process.device)  # tensors laid out like the trained ones are averaged in one go
        torch.backends.cudnn.benchmark = True  # the crops' size never changes
        half = recipe.precision == "bf16"
        compiled = process.device.type == "cuda" if recipe.compile is None else recipe.compile
        if compiled:
            self.report.say("the first step compiles the model, which takes minutes; compile: false starts at once")
        self.model = fast.prepare(model, process.device, half, compiled).train()
        self.autocast = torch.autocast(process.device.type, torch.bfloat16, enabled=half)
        self.parameters: list[Tensor] = list(self.model.parameters())
        self.averaged: list[Tensor] = list(self.average.parameters())
        self.to_average = get_ema_multi_avg_fn(recipe.ema)
        on_gpu = process.device.type == "cuda"
        self.rate = torch.tensor(recipe.lr, device=process.device)
        self.optimizer = torch.optim.AdamW(
            self.parameters, self.rate, recipe.betas, weight_decay=recipe.weight_decay, fused=True, capturable=on_gpu
        )
        self.step = 0
        if state is not None:
            self._restore(self.optimizer, state["optimizer"])
            for group in self.optimizer.param_groups:  # not those of the device that the state comes from
                group.update(lr=self.rate, capturable=on_gpu)
            self.step = state["step"]
            report.say(f"going on from step {self.step} in {self.state_path}")
        self.saved = self.step if state is not None else None
        self.exchange = Exchange(self.parameters) if process.world > 1 else None
        self.differentiate = fast.Replayed(self._differentiate) if on_gpu else self._differentiate
        self.apply = fast.Replayed(self._apply) if on_gpu else self._apply
        self.updating = threading.RLock()  # held while weights, averaged weights, optimizer and step change together
        self.saving = False
        self.together = False  # a step is under way in which processes wait for each other
        self.batches = self._batches()
        self.loss = torch.zeros((), device=process.device)
        self.share = torch.tensor(1 / process.world, device=process.device)  # of the loss of all, in gradients

    def _restore(self, part: nn.Module | torch.optim.Optimizer, values: dict[str, Any]) -> None:
        try:
            part.load_state_dict(values)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"{self.state_path}: does not fit this run ({first_line(error)}); remove it to start anew"
            ) from None

    def _batches(self) -> Batches:
        recipe, process = self.recipe, self.process
        pairs = read_pairs(recipe.train, recipe.scale, recipe.crop, self.report.say)
        device = storage_device(pairs, process.device)
        size = amount(sum(pair.low.nbytes + pair.high.nbytes for pair in pairs))
        where = "on the GPU" if device.type == "cuda" else "in memory"
        self.report.say(f"{len(pairs)} pictures, {size} {where}")
        crops = Crops(pairs, recipe.scale, recipe.crop, device)
        return Batches(crops, recipe.seed, recipe.batch, process.device, process.rank, process.world)

    def go(self, stop_after: float | None) -> None:
        """The loop: updates, and now and then a record, a state, a validation."""
        self._resume_table("log.csv", "step", "loss", "lr", "steps_per_second")
        kept = self._resume_table("validation.csv", "step", "set", "psnr", "ssim")
        with interruptions() as came, interrupt.at_last(self.keep):
            try:
                if self._due(self.recipe.validate_every):
                    scored = {name for step, name, *_ in kept if int(step) == self.step}
                    self.validate(self.process.shared(scored))
                self._train(stop_after, came)
            except RuntimeError as error:
                if not came:
                    raise
                # Mostly since another process ended first, by the same signal; if not, nothing else would tell it.
                self.report.say(f"after the signal: {first_line(error)}")
                self.together = False
                self.keep()
                raise came[0] from None

    def _train(self, stop_after: float | None, came: list[type[KeyboardInterrupt]]) -> None:
        recipe, start, stop = self.recipe, time.monotonic(), False
        since, clock = self.step, start
        while not stop and self.step < recipe.steps:
            self.update()
            if self._due(recipe.log_every):
                loss = self.mean_loss(self.step - since)
                rate = (self.step - since) / (time.monotonic() - clock)
                lr = recipe.learning_rate(self.step - 1)
                self._write_row("log.csv", self.step, f"{loss:.6g}", f"{lr:.4g}", f"{rate:.4g}")
                self.report.progress(self.step, loss, rate)
                since, clock = self.step, time.monotonic()
            late = stop_after is not None and time.monotonic() - start > stop_after
            late, interrupted = self.process.agreed(late, bool(came))
            stop = late or interrupted
            self.together = self.exchange is not None and not stop
            if stop or self._due(recipe.save_every):
                self.save()
            if interrupted:
                self.report.say(f"interrupted: step {self.step} is in {self.state_path}; the same command goes on")
                raise came[0] if came else KeyboardInterrupt
            if stop or self._due(recipe.validate_every):
                together, self.together = self.together, False
                self.validate()
                clock = time.monotonic()  # the rate is that of training alone
                self.together = together

    def _due(self, every: int) -> bool:
        """Whether this is a step for what is done every so many steps, and after the last."""
        return self.step == self.recipe.steps or (self.step > 0 and self.step % every == 0)

    def update(self) -> None:
        """One step. Does not wait for the GPU."""
        self.rate.fill_(self.recipe.learning_rate(self.step))
        low, high = self.batches[self.step]
        self.differentiate(low, high)
        with self.updating:
            if self.exchange is not None:
                self.exchange.sum()
            self.apply()
            self.step += 1

    def _differentiate(self, low: Tensor, high: Tensor) -> None:
        """Forward, backward."""
        self.optimizer.zero_grad()
        with self.autocast:
            loss = F.l1_loss(self.model(low), high)
        loss.backward(self.share)
        if self.exchange is not None:
            self.exchange.take()
        self.loss += loss.detach()

    def _apply(self) -> None:
        """Optimizer, average."""
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        self.to_average(self.averaged, self.parameters, 0)

    def mean_loss(self, steps: int) -> float:
        """Over the last `steps` steps and all processes. Raises TrainingError when it or a weight is not finite."""
        total = self.loss.clone()
        self.loss.zero_()
        if self.process.world > 1:
            distributed.all_reduce(total)
        loss = float(total) / (steps * self.process.world)
        if not np.isfinite(loss):
            self._diverged("the loss is not finite")
        return loss

    def _diverged(self, what: str) -> None:
        kept = (
            f"the last good state is step {self.saved} in {self.state_path}" if self.saved else "no state was written"
        )
        raise TrainingError(f"{what} by step {self.step}: {kept}; lower lr, lengthen warmup, or set clip")

    def save(self) -> None:
        """Writes state and averaged weights, unless they are not finite."""
        with self.updating:
            self.saving = True
            self._save()
            self.saving = False

    def keep(self) -> None:
        """Of a run that is told to end in the middle of a step that takes long: writes the state of the last one.

        Another thread calls it. Several processes have their main threads stop after one and the same step: one that
        ended now would have the others' GPUs wait for ever.
        """
        end = time.monotonic() + interrupt.LONGEST
        while self.together and time.monotonic() < end:
            time.sleep(0.05)
        if self.updating.acquire(timeout=interrupt.LONGEST if self.saving else 0.5):
            if self.step and self.saved != self.step:
                self.save()
            if self.saved:
                self.report.say(f"interrupted: step {self.saved} is in {self.state_path}; the same command goes on")

    def _save(self) -> None:
        norm = nn.utils.get_total_norm([*self.parameters, *self.averaged])
        if not bool(torch.isfinite(norm + self.loss)):
            self._diverged("loss or weights are not finite")
        if self.process.first:
            state = {
                "ribsr_state": STATE_FORMAT,
                "recipe": to_dict(self.recipe),
                "step": self.step,
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            # The weights first: where a run is killed in between, going on from the state makes them again.
            checkpoint.save(self.average, weights_path(self.recipe))
            with atomic(self.state_path) as temporary:
                torch.save(state, temporary)
        self.saved = self.step

    def _resume_table(self, name: str, *columns: str) -> list[list[str]]:
        """Starts a CSV file, but for its rows up to the step that the run goes on from; returns those."""
        path, kept = self.folder / name, []
        if not self.process.first:
            return kept
        if self.step > 0 and path.exists():
            with open(path, newline="", **TEXT) as file:
                rows = [row for row in csv.reader(file) if len(row) == len(columns)][1:]
            kept = [row for row in rows if row[0].isdecimal() and int(row[0]) <= self.step]
        with atomic(path) as temporary, open(temporary, "w", newline="", **TEXT) as file:
            csv.writer(file).writerows([columns, *kept])
        return kept

    def _write_row(self, name: str, *values: object) -> None:
        """To the CSV file of that name; the first value is the step."""
        if self.process.first:
            with open(self.folder / name, "a", newline="", **TEXT) as file:
                csv.writer(file).writerow(values)

    def validate(self, scored: Collection[str] = ()) -> None:
        """Scores the averaged weights on the benchmark sets; every process takes a share of each.

        scored: sets whose scores of this step are written already, when the run goes on from it.
        """
        for name, paths in self.sets.items():
            if name not in scored:
                self._score(name, paths)

    def _score(self, name: str, paths: list[Path]) -> None:
        """One set's row; none where a picture cannot be read any more, or enlarged in this memory: a mean of the others
        would mislead, and training goes on."""
        share, reason = [], None
        try:
            mine = paths[self.process.rank :: self.process.world]
            share = list(benchmark.score(self.upscale, mine, self.recipe.scale))
        except (DataError, torch.cuda.OutOfMemoryError, MemoryError) as error:
            reason = first_line(error)
        shares, reasons = zip(*self.process.gathered((share, reason)), strict=True)
        if any(reasons):
            self.report.say(f"step {self.step}: {name} is not scored: {next(filter(None, reasons))}")
            return
        scores = [*chain(*shares)]
        psnr, ssim = (float(np.mean([getattr(score, of) for score in scores])) for of in ("psnr", "ssim"))
        self._write_row("validation.csv", self.step, name, f"{psnr:.4f}", f"{ssim:.5f}")
        self.report.say(f"step {self.step}: {name} {psnr:.3f} dB, SSIM {ssim:.4f}")

    def upscale(self, pixels: np.ndarray) -> np.ndarray:
        """The averaged model on an 8-bit picture [H, W, 3], in float32."""
        x = torch.from_numpy(to_input(pixels)).to(self.process.device)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            return to_pixels(self.average(x).cpu().numpy())


def check(recipe: Recipe, world: int) -> dict[str, list[Path]]:
    """The benchmark sets to validate on. Raises, before anything takes long, TrainingError where so many processes
    cannot share a batch, and DataError that says what else would end the run later: all of it at once."""
    if recipe.batch % world:
        raise TrainingError(f"batch {recipe.batch} cannot be shared by {world} processes; change it")
    if not recipe.train:
        raise DataError("the recipe's train lists no folders of pictures; name some")
    folders = dict.fromkeys(name for folder in recipe.train for name in (folder.high, folder.low) if name is not None)
    wrong = [reason for name in folders if (reason := _unusable(Path(name)))]
    sets: dict[str, list[Path]] = {}
    try:
        sets = benchmark.find_sets(*map(Path, recipe.validation))
    except DataError as error:
        wrong.append(str(error))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = pool.map(lambda path: benchmark.why_not(path, recipe.scale), chain(*sets.values()))
    unscored = [reason for reason in reasons if reason]
    wrong += unscored[:MOST_NAMED]
    if more := unscored[MOST_NAMED:]:
        wrong.append(f"and {len(more)} more pictures of validation")
    if wrong:
        raise DataError("; ".join(wrong))
    return sets


def _unusable(folder: Path) -> str | None:
    try:
        return None if pictures_in(folder) else f"{folder}: holds no pictures"
    except DataError as error:
        return str(error)


def read_state(path: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The state to go on from; None if there is none. Raises TrainingError for another recipe's or a damaged one."""
    if not path.exists():
        return None
    try:
        state = checkpoint.read_torch(path)
    except checkpoint.CheckpointError as error:
        raise TrainingError(f"{error}; remove it to start anew") from None
    if not (
        state.keys() >= {"ribsr_state", *STATE_PARTS}
        and _same(state["ribsr_state"], STATE_FORMAT)
        and isinstance(state["step"], int)
        and all(isinstance(state[name], dict) for name in STATE_PARTS - {"step"})
    ):
        raise TrainingError(f"{path}: not a training state of this version; remove it to start anew")
    ours = to_dict(recipe)
    for name, value in state["recipe"].items():
        if name not in FREE_FIELDS and not _same(ours.get(name), value):
            called = name if isinstance(name, str) else shown(name)
            raise TrainingError(
                f"{path}: belongs to a run with {called} {shown(value)}, not {ours.get(name)!r}; "
                "restore that, or give another output folder"
            )
    return state


def _same(ours: Any, value: Any) -> bool:
    """Whether they are equal; a file may hold what cannot be compared, such as tensors."""
    try:
        return bool(ours == value)
    except (RuntimeError, ValueError, TypeError):
        return False


def initial_model(recipe: Recipe) -> RIBModel:
    """With the authors' initialisation, or the weights of `init`, its upsampler resized where the scale differs."""
    config = recipe.network()
    torch.manual_seed(recipe.seed)
    model = build(config)
    if recipe.init is not None:
        start = checkpoint.load(recipe.init, model=recipe.model if recipe.model in CONFIGS else None)
        if replace(start.config, scale=recipe.scale, name=config.name) != config:
            raise TrainingError(f"{recipe.init}: holds a {start.config.name} of other sizes than {recipe.model}")
        model.load_state_dict(resize_upsampler(start.state_dict(), start.config.scale, recipe.scale))
    return model


def resize_upsampler(params: Mapping[str, Tensor], scale: int, new_scale: int) -> dict[str, Tensor]:
    """Weights of a model for `scale` as the start of one for `new_scale`, as the authors do it.

    The output channels of the upsampler's last wide convolution are a grid (channel, scale, scale), which is resized
    bilinearly; its 3x3 kernels and all other weights stay.
    """
    resized = dict(params)
    for key in ("upsampler.up_conv.weight", "upsampler.up_conv.bias"):
        value = params[key].detach()
        grid = value.view(-1, scale, scale, value[0].numel()).permute(3, 0, 1, 2)
        grid = F.interpolate(grid, size=(new_scale, new_scale), mode="bilinear", align_corners=False)
        resized[key] = grid.permute(1, 2, 3, 0).reshape(-1, *value.shape[1:])
    return resized
