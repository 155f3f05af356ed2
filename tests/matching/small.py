"""Two Gaussians as teacher and student, small latents, and references that several files of tests share."""

import torch

from dmvae.references.gaussian import Gaussian
from dmvae.runtime.random import Random

SHAPE, CLASSES, N = (2, 2, 2), 3, 6
TEACHER, STUDENT = Gaussian(SHAPE, CLASSES, 1.0), Gaussian(SHAPE, CLASSES, 0.4)
LABELS = torch.zeros(N, dtype=torch.int64)


def drawn(seed):
    """What an objective draws from Context(Random(seed)): times [N, 1, 1, 1] and noise."""
    rng = Random(seed)
    return (0.02 + 0.96 * rng.uniform(N)).view(-1, 1, 1, 1), rng.normal(N, *SHAPE)


class Halves:
    """Latents about +2 under label 1 and about -2 under label 0."""

    def __init__(self, shape):
        self.shape = shape

    def sample(self, n, rng):
        labels = rng.integers(2, n)
        return (4.0 * labels - 2).view(-1, 1, 1, 1) + 0.3 * rng.normal(n, *self.shape), labels
