"""The optimizer of the built-in model, and the loop that can be stopped and gone on with at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

GO_ON_RATE = 0.6  # of the peak learning rates, when training goes on from weights


@dataclass(frozen=True)
class Options:
    steps: int | None
    seed: int
    threads: int
    device: str
    begin_with: Path | None
    until: float  # time.monotonic() at which the slice ends


class Run:
    """A model, its optimizers and a running average of its weights, with a state that can be saved and resumed.

    Matrices and convolution kernels are stepped by Muon (orthogonalised momentum, scaled to AdamW's update size), which
    learns here in about 0.6 of AdamW's steps; all else, and what touches the input or the output, by AdamW.
    """

    def __init__(
        self, model: torch.nn.Module, file: Path, *, steps: int, muon: float, adamw: float, ema: float
    ) -> None:
        self.model, self.file, self.steps, self.ema_rate = model, file, steps, ema
        self.named = dict(model.named_parameters())
        self.ema = {k: p.detach().clone() for k, p in self.named.items()}
        self.as_matrix = {k: _as_matrix(p) for k, p in self.named.items() if _is_hidden(k, p)}
        rest = {k: p for k, p in self.named.items() if k not in self.as_matrix}
        scaled: Any = dict(weight_decay=1e-2, adjust_lr_fn="match_rms_adamw")
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(list(self.as_matrix.values()), lr=muon, **scaled),
            torch.optim.AdamW(list(rest.values()), lr=adamw, betas=(0.9, 0.99), weight_decay=1e-4),
        ]
        self.stepped: list[dict[str, torch.Tensor]] = [self.as_matrix, {**rest}]
        self.peaks = (muon, adamw)
        self.step = 0
        if file.exists():
            self._load()

    def learning_rate(self) -> float:
        """As a share of the peak: warm-up over 100 steps, then a half cosine to zero at the last step."""
        done = self.step / self.steps
        return min(1.0, (self.step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def update(self, gradients: Sequence[torch.Tensor]) -> None:
        """One step with gradients in the order of the model's parameters."""
        gradient_of = dict(zip(self.named, gradients, strict=True))
        for k, p in self.named.items():
            p.grad = gradient_of[k]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for k, matrix in self.as_matrix.items():
            matrix.grad = _as_matrix(gradient_of[k])
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * self.learning_rate()
            optimizer.step()
        self.step += 1
        rate = min(self.ema_rate, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for k, p in self.named.items():
                self.ema[k].lerp_(p, 1 - rate)

    def use_average(self) -> None:
        with torch.no_grad():
            for k, p in self.named.items():
                p.copy_(self.ema[k])

    def save(self) -> None:
        state = {f"model.{k}": p.detach() for k, p in self.named.items()} | {f"ema.{k}": v for k, v in self.ema.items()}
        for optimizer, stepped in zip(self.optimizers, self.stepped, strict=True):
            for k, p in stepped.items():
                for part, value in optimizer.state[p].items():  # empty for what has had no gradient yet
                    state[f"{part}|{k}"] = value
        temporary = self.file.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in state.items()}, temporary, {"step": str(self.step)})
        temporary.replace(self.file)

    def _load(self) -> None:
        with safe_open(self.file, "pt") as f:
            self.step = int(f.metadata()["step"])
        device = next(iter(self.named.values())).device
        state = load_file(self.file, device=str(device))
        with torch.no_grad():
            for k, p in self.named.items():
                p.copy_(state[f"model.{k}"])
                self.ema[k] = state[f"ema.{k}"]
        for optimizer, stepped in zip(self.optimizers, self.stepped, strict=True):
            for k, tensor in stepped.items():
                parts = {name.split("|")[0]: v for name, v in state.items() if name.endswith(f"|{k}")}
                optimizer.state[tensor] = parts


def _is_hidden(name: str, p: torch.Tensor) -> bool:
    outer = (
        "conv_in.",
        "conv_out.",
        "patch_embedding.",
        "proj_out.",
        "shared.",
        "embed_tokens.",
        "scale_shift",
        "bias",
    )
    return p.ndim >= 2 and p.shape[0] > 1 and p[0].numel() > 1 and not any(o in name for o in outer)


def _as_matrix(p: torch.Tensor) -> torch.Tensor:
    """A view (out, everything else) that shares the tensor's memory, whichever way its channels lie."""
    p = p.detach()
    return p.view(p.shape[0], -1) if p.is_contiguous() else p.movedim(1, -1).view(p.shape[0], -1)


class Workers:
    """Gradients of a batch in halves, one half a thread: on a few CPU cores faster than two threads in each operation.

    The number of halves is fixed, and they are added in order, so the number of cores does not decide the weights.
    """

    HALVES = 2

    def __init__(self, model: torch.nn.Module, threads: int) -> None:
        self.parameters = list(model.parameters())
        self.threads = ThreadPoolExecutor(min(threads, self.HALVES), initializer=self._start)

    @staticmethod
    def _start() -> None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)

    def gradients(self, loss_of: Callable[[int], torch.Tensor]) -> tuple[list[torch.Tensor], float]:
        """The mean over the halves of the gradients of `loss_of(half)`, and the mean loss."""

        def one(half: int) -> tuple[tuple[torch.Tensor | None, ...], float]:
            loss = loss_of(half)
            return torch.autograd.grad(loss, self.parameters, allow_unused=True), float(loss.detach())

        done = list(self.threads.map(one, range(self.HALVES)))
        total = [
            sum((g for g in parts if g is not None), torch.zeros_like(p)) / self.HALVES
            for p, *parts in zip(self.parameters, *(g for g, _ in done), strict=True)
        ]
        return total, sum(loss for _, loss in done) / self.HALVES


def drive(
    run: Run,
    workers: Workers,
    loss_at: Callable[[int, int], torch.Tensor],
    *,
    until: float,
    before: Callable[[int], None] = lambda step: None,
) -> bool:
    """Step until the phase or the slice ends; report every 100 steps, save every 500. True when the phase is done."""
    started, begun, recent = time.monotonic(), run.step, []
    while run.step < run.steps and time.monotonic() < until:
        before(run.step)
        gradients, loss = workers.gradients(partial(loss_at, run.step))
        recent.append(loss)
        run.update(gradients)
        if run.step % 100 == 0:
            pace = (time.monotonic() - started) / (run.step - begun)
            print(f"step {run.step}/{run.steps} loss {np.mean(recent):.4f} {pace:.3f} s/step", flush=True)
            recent.clear()
        if run.step % 500 == 0:
            run.save()
    run.save()
    return run.step >= run.steps
