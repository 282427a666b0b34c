"""The denoise stage: the one loop of all families.

Legend: B batch (1), C latent channels, F latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from safetensors.torch import load, save

from farm.models.card import Matrix
from farm.models.checkpoint import card_of
from farm.pools.parallel import Degrees, work_of_request
from farm.task import Denoise
from pipelines.checkpoint import StepState, pack, unpack
from pipelines.continuity import anchored, blend, free_noise, grids_of
from pipelines.family import Family, Given, Predict, Run, Tensors, family_of, step_of
from pipelines.finite import check_finite
from pipelines.load import best_device, load_component, resident, speed_up
from pipelines.loras import use_loras
from pipelines.parallel import Gang, Split
from pipelines.stage import Artifact, Progress, Result, as_bytes

PREVIEW_EVERY_S = 1.0  # a preview costs some 6 ms; nobody looks more often


def denoise(
    latents_BCFHW: torch.Tensor, *, family: Family, run: Run, predict: Predict, progress: Progress,
    components: Mapping[str, Any], rgb_matrix: Matrix = (),
) -> torch.Tensor:  # fmt: skip
    """Take noise to latents, from the start or from where another process has stopped (`progress.saved`).

    Args:
        latents_BCFHW: what the first step takes, float32.
        run: with a scheduler whose timesteps are set.
        predict: the family's model with its guidance: (latents, timestep) to a prediction of the latents' shape.
        rgb_matrix: for previews, one row a latent channel, then the bias.
        components: what predicts, looked at when latents are not finite.
    Raises:
        TaskCanceled, Halted: between two steps.
        InputError, NotFinite: latents are not finite, at a checkpoint or at the end.
    """
    scheduler, steps = run.scheduler, len(run.scheduler.timesteps)
    if progress.saved is not None:
        state = unpack(progress.saved, scheduler, device=str(latents_BCFHW.device), generator=run.generator)
        latents_BCFHW, progress.resumed_at, run.carried = state.latents, state.step, state.extra
    done = progress.resumed_at

    def keep(state: StepState) -> bytes:
        check_finite({"latents": state.latents}, f"denoise's latent after step {state.step} of {steps}", components)
        return pack(state, scheduler, run.generator)

    progress.advance(done, steps)
    shown_at = time.monotonic()
    for i, t in enumerate(scheduler.timesteps[done:], start=done):
        run.step = i
        prediction = predict(latents_BCFHW, t)
        latents_BCFHW = family.step(run, prediction, t, latents_BCFHW)
        if time.monotonic() - shown_at > PREVIEW_EVERY_S:
            progress.preview, shown_at = preview_png(latents_BCFHW, rgb_matrix), time.monotonic()
        progress.advance(i + 1, steps, partial(keep, StepState(i + 1, latents_BCFHW, run.carried)))
    check_finite({"latents": latents_BCFHW}, f"denoise's latent after step {steps} of {steps}", components)
    return latents_BCFHW


def noise_of(family: Family, request: Denoise, generator: torch.Generator) -> torch.Tensor:
    """A chunk's or a take's noise, float32; drawn on the CPU, as stock diffusers does with a CPU generator."""
    noise = family.draw(request, generator)
    if request.noise != "free" or len(request.slices) < 2:
        return noise
    first, second = request.slices[:2]
    generator = torch.Generator("cpu").manual_seed(request.seed)
    return free_noise(noise, window=first.num_latents, stride=second.first_latent, generator=generator)


def preview_png(latents_BCFHW: torch.Tensor, rgb_matrix: Matrix) -> bytes:
    """The middle frame as a small PNG by a linear map from latent channels to RGB; empty where no map is known."""
    from PIL import Image

    middle_CHW = latents_BCFHW[0, :, latents_BCFHW.shape[2] // 2].float().cpu()
    if len(rgb_matrix) != middle_CHW.shape[0] + 1:
        return b""
    matrix = torch.tensor(rgb_matrix)
    rgb_HW3 = torch.einsum("chw,cr->hwr", middle_CHW, matrix[:-1]) + matrix[-1]
    picture = ((rgb_HW3 + 1) * 127.5).clamp(0, 255).byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(picture).resize((picture.shape[1] * 8, picture.shape[0] * 8), Image.Resampling.BICUBIC).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def load_latents(artifact: Artifact) -> torch.Tensor:
    latents: torch.Tensor = load(as_bytes(artifact))["latents"]
    return latents


class Stage:
    """Holds the transformer (both experts where there are two) and the scheduler, nothing else."""

    def __init__(
        self, model: str, components: Sequence[str] = ("transformer", "scheduler"), *, dtype: str = "float32",
        offload: str = "none", quantize: str = "", attention: str = "", compile: bool = False,
        cache: Sequence[tuple[str, Any]] = (), gang: Gang | None = None,
    ) -> None:  # fmt: skip
        """`gang`: the other ranks that hold the same stage and run every task together with this one."""
        self.device, self.offload, self.card, self.gang = best_device(), offload, card_of(model), gang
        self.components = {
            c: load_component(model, c, dtype=dtype, device=self.device, offload=offload,
                              quantize=quantize if c.startswith("transformer") else "",
                              is_sharded=gang is not None and gang.sharing.shard_weights)
            for c in components
        }  # fmt: skip
        self.degrees, self.split_models = Degrees(), list[Any]()  # as the last task wanted it
        self.loras: Any = ()
        self.is_cached = bool(cache)  # what a step leaves out depends on the steps before: slices stay together then
        self.models: list[Any] = [m for m in self.components.values() if isinstance(m, torch.nn.Module)]
        for model_ in self.models:
            speed_up(model_, attention=attention, compile=compile, cache=dict(cache))

    @torch.no_grad()
    def run(self, request: Denoise, inputs: Sequence[Artifact], progress: Progress) -> Result:
        """Returns `latents` (1, C, F, H, W), those of the context included.

        Args:
            inputs: the embeddings of prompts, which the slices name by their index; with context the `latents` whose
                last `request.context_latents` frames are the first ones here.
        """
        with resident(self.models, device=self.device, offload=self.offload):
            return self._run(request, inputs, progress)

    def _run(self, request: Denoise, inputs: Sequence[Artifact], progress: Progress) -> Result:
        family, scheduler = family_of(request.family), self.components["scheduler"]
        predicts, given = self.predicts(request, inputs)
        for one in self.models:
            if getattr(one, "is_cache_enabled", False):
                one._reset_stateful_cache()
        run = Run(request, scheduler, torch.Generator("cpu").manual_seed(request.seed), given)
        noise = noise_of(family, request, run.generator).to(self.device)
        latents_BCFHW = denoise(
            family.begin(run, noise),
            family=family,
            run=run,
            predict=blend(
                grids_of(request),
                predicts,
                step_of=partial(step_of, scheduler),
                share=self._share(progress),
            ),
            progress=progress,
            rgb_matrix=self.card.latent_rgb,
            components=self.components,
        )
        return Result(save({"latents": family.end(run, latents_BCFHW).cpu().contiguous()}))

    def _share(self, progress: Progress) -> Any:
        if self.is_cached:
            return None
        return self.gang.share(progress.share) if self.gang else progress.share

    def _share_out(self, request: Denoise) -> Split | None:
        """Spread the transformers over the gang as the task wants it; how, where guidance is split too."""
        if self.gang is None:
            return None
        degrees = self.gang.sharing.degrees_for(work_of_request(self.card, request))
        split = self.gang.split(degrees)
        if degrees != self.degrees:
            self._join()
            from pipelines.sequence import split_all

            self.degrees, self.split_models = degrees, split_all(self.models, split)
        return split if degrees.guidance > 1 else None

    def _join(self) -> None:
        """Make the transformers whole again."""
        for one in self.split_models:
            one.remove()
        self.degrees, self.split_models = Degrees(), []

    def predicts(self, request: Denoise, inputs: Sequence[Artifact]) -> tuple[dict[int, Predict], Given]:
        """The model with its guidance for each slice of all grids, by number, and what the whole is given."""
        if request.loras != self.loras:  # adapters may stand where tokens are split or gathered
            self._join()
            self.loras = request.loras
        first_lora = len(inputs) - len(request.loras)
        use_loras(self.card, self.components, request.loras, inputs[first_lora:])
        split = self._share_out(request)
        tensors = [{k: v.to(self.device) for k, v in load(as_bytes(i)).items()} for i in inputs[:first_lora]]
        family, scheduler = family_of(request.family), self.components["scheduler"]
        family.set_timesteps(scheduler, request, self.components, self.device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        texts: list[Tensors] = [t for t in tensors if "embeds" in t]
        condition = {k: v for t in tensors if "embeds" not in t for k, v in t.items()}
        known, made = request.context_latents, {}
        context = condition["latents"][:, :, -known:] if known else None
        if context is not None and context.shape[2] != known:
            raise ValueError(f"the context must have {known} latent frames, got {context.shape[2]}")
        for number, s in ((i, s) for grid in grids_of(request) for i, s in grid.items()):
            text = {} if s.prompt is None else texts[s.prompt]
            negative = None if s.negative is None else texts[s.negative]
            own = context[:, :, s.first_latent :] if context is not None and s.first_latent < known else None
            anchor = context[:, :, :1] if request.anchor and own is None and context is not None else None
            given = Given(text, negative, condition, own if anchor is None else anchor, str(number), split)
            predict = family.make_predict(self.components, request, given)
            made[number] = predict if anchor is None else anchored(predict, anchor)
        return made, Given({}, None, condition, context)

    @torch.no_grad()
    def assist(self, predicts: Mapping[int, Predict], payload: bytes) -> bytes:
        """Predict some slices for a take that another process owns: latents by index, and `t`, to predictions."""
        parts = {k: v.to(self.device) for k, v in load(payload).items()}
        (t,) = parts.pop("t")
        with resident(self.models, device=self.device, offload=self.offload):
            order = sorted(parts, key=int)  # on all ranks of a gang the same; that of `load` is another in each process
            made: bytes = save({i: predicts[int(i)](parts[i], t).cpu().contiguous() for i in order})
        return made
