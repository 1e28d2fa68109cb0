"""DDIM over a mixture of Gaussians whose score is known in closed form, so that nothing has to be learnt.

Sources: Song et al. 2020, Denoising Diffusion Implicit Models, eq. 12 with η = 0; Nichol and Dhariwal 2021, the cosine
schedule; Ho and Salimans 2022, guidance, with the negative prompt in the place of the unconditional distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """Independent blocks, each a mixture: means [blocks, modes, dims], log_weights [blocks, modes], spread [dims]."""

    means: Floats
    log_weights: Floats
    spread: Floats

    def noise(self, latent: Floats, alpha: float, sigma: float) -> Floats:
        """Return the noise expected in latent = alpha·clean + sigma·noise [blocks, dims]: −sigma times the score."""
        variance = (alpha * self.spread) ** 2 + sigma**2
        apart = latent[:, None, :] - alpha * self.means
        logits = self.log_weights - (apart**2 / (2 * variance)).sum(axis=-1)
        share = np.exp(logits - logits.max(axis=-1, keepdims=True))
        share /= share.sum(axis=-1, keepdims=True)
        noise: Floats = np.einsum("bm,bmd->bd", share, apart) * sigma / variance
        return noise


def sample(wanted: Mixture, unwanted: Mixture, seed: int, steps: int, guidance: float) -> Floats:
    """Return a latent [blocks, dims]: `steps` DDIM steps from the seed's noise, guided from `unwanted` to `wanted`."""
    latent = np.random.default_rng(seed).standard_normal((wanted.means.shape[0], wanted.means.shape[2]))
    times = np.linspace(0.995, 0.0, steps + 1)
    for now, then in zip(times[:-1], times[1:], strict=True):
        alpha, sigma = _schedule(now)
        away = unwanted.noise(latent, alpha, sigma)
        noise = away + guidance * (wanted.noise(latent, alpha, sigma) - away)
        clean = (latent - sigma * noise) / alpha
        alpha, sigma = _schedule(then)
        latent = alpha * clean + sigma * noise
    return latent


def _schedule(time: float) -> tuple[float, float]:
    return float(np.cos(time * np.pi / 2)), float(np.sin(time * np.pi / 2))
