"""Clips to train the autoencoder on: drawn anew all the time, encoded and decoded whole."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan

from pipelines.builtin import world

Batch = tuple[torch.Tensor, torch.Tensor]


class WholeClips:
    """An AutoencoderKLWan run over whole clips at once instead of four frames at a time with caches.

    The numbers are the same (a test compares them to 1e-5); training is three times as fast.
    """

    def __init__(self, vae: AutoencoderKLWan, device: str = "cpu") -> None:
        self.vae, self.device = vae.to(device), device
        for module in vae.modules():
            if isinstance(module, autoencoder_kl_wan.WanResample):
                module.forward = partial(self._resample, module)
            elif isinstance(module, torch.nn.Conv3d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
            elif isinstance(module, torch.nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def _resample(module: Any, x: torch.Tensor, *_: Any) -> torch.Tensor:
        """As the module with caches: the first frame stays one frame, those after it halve or double."""
        if module.mode == "upsample3d" and x.shape[2] > 1:
            later = module.time_conv(x[:, :, 1:]).unflatten(1, (2, x.shape[1]))  # (B, 2, C, T, H, W)
            x = torch.cat([x[:, :, :1], later.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], 2)
        batch, num_frames = x.shape[0], x.shape[2]
        x = module.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, num_frames)).transpose(1, 2)
        if module.mode == "downsample3d" and num_frames > 1:
            x = torch.cat([x[:, :, :1], module.time_conv(x)], 2)
        return x

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Video (B, 3, T, H, W) in [-1, 1] to the mode of its latents (B, C, F, H / 8, W / 8)."""
        video = video.to(self.device).contiguous(memory_format=torch.channels_last_3d)
        patches = autoencoder_kl_wan.patchify(video, self.vae.config.patch_size)
        moments: torch.Tensor = self.vae.quant_conv(self.vae.encoder(patches))
        return moments.float().chunk(2, dim=1)[0]

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents to video, not clamped."""
        patches = self.vae.decoder(self.vae.post_quant_conv(z))
        video: torch.Tensor = autoencoder_kl_wan.unpatchify(patches, self.vae.config.patch_size)
        return video.float()


class ClipPool:
    """Clips drawn ahead of time, of which every eighth step replaces one: fresh enough, and cheap on a busy core."""

    NUM_FRAMES, SIZE, STEPS_A_CLIP = 65, 300, 8

    def __init__(self, *, seed: int, step: int) -> None:
        """The pool as it stands before a step."""
        self.seed = seed
        renewed = (step + self.STEPS_A_CLIP - 1) // self.STEPS_A_CLIP
        self.clips = [self._draw(i, (renewed + self.SIZE - 1 - i) // self.SIZE) for i in range(self.SIZE)]

    def _draw(self, slot: int, generation: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, 5, slot, generation))
        scene, first = world.draw_scene(rng), int(rng.integers(0, 200))
        frames = world.render(scene, num_frames=self.NUM_FRAMES, first_frame=first)
        return frames, world.object_mask(scene, num_frames=self.NUM_FRAMES, first_frame=first)

    def renew(self, step: int) -> None:
        if step % self.STEPS_A_CLIP == 0:
            generation, slot = divmod(step // self.STEPS_A_CLIP, self.SIZE)
            self.clips[slot] = self._draw(slot, generation + 1)

    def batch(self, rng: np.random.Generator, *, size: int, num_frames: int) -> Batch:
        """Videos in [-1, 1] of shape (B, 3, T, H, W), half of them mirrored, and the object's mask (B, 1, T, H, W)."""
        videos, masks = [], []
        for i in rng.integers(len(self.clips), size=size):
            first, way = int(rng.integers(self.NUM_FRAMES - num_frames + 1)), int(rng.choice((-1, 1)))
            frames, mask = (array[first : first + num_frames, :, ::way] for array in self.clips[i])
            videos.append(frames)
            masks.append(mask)
        video = torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return video, torch.from_numpy(np.stack(masks))[:, None].float()
