"""How well latents separate their classes: nearest neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmvae.evaluation.rows import by_rows

CHUNK = 256
"""Rows of a distance matrix at a time."""


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    *,
    shared: bool = False,
) -> float:
    """Share of test vectors [m, d] that their k nearest training vectors [n, d] classify correctly.

    Nearness is cosine similarity s; a neighbour's vote has the weight exp(s / temperature), as in DINO's evaluation
    (arXiv 2104.14294). Labels are int64 [n] and [m]; all tensors are on one device. shared: all ranks call, with the
    same vectors, and divide the test vectors among them. Raises ValueError when k exceeds n.
    """
    if k > len(train):
        raise ValueError(f"k = {k} neighbours of only {len(train)} training vectors; use a smaller k")
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    classes = int(torch.maximum(train_labels.max(), test_labels.max())) + 1

    def classify(rows: slice) -> list[Tensor]:
        similarity, neighbours = (test[rows] @ train.T).topk(k, dim=1)
        votes = torch.zeros(len(similarity), classes, device=test.device)
        weights = (similarity / temperature).exp()
        for label, weight in zip(train_labels[neighbours].split(1, 1), weights.split(1, 1), strict=True):
            votes.scatter_add_(1, label, weight)  # one vote a row at a time: a GPU adds several in random order
        return [votes.argmax(1)]

    (found,) = by_rows(classify, test, CHUNK, shared=shared)
    return int((found == test_labels).sum()) / len(test)
