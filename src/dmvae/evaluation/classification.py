"""How well latents tell their classes apart: nearest neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 256
"""Rows of a distance matrix at a time."""


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20, temperature: float = 0.07
) -> float:
    """Share of test vectors [m, d] that their k nearest training vectors [n, d] classify rightly.

    Nearness is cosine similarity s, a neighbour's vote weighs exp(s / temperature), as DINO evaluates
    (arXiv 2104.14294). Labels are int64 [n] and [m]. Raises ValueError when k exceeds n.
    """
    if k > len(train):
        raise ValueError(f"k = {k} neighbours of only {len(train)} training vectors")
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    classes = int(torch.maximum(train_labels.max(), test_labels.max())) + 1
    right = 0
    for i in range(0, len(test), CHUNK):
        similarity, neighbours = (test[i : i + CHUNK] @ train.T).topk(k, dim=1)
        votes = torch.zeros(len(similarity), classes, device=test.device)
        votes.scatter_add_(1, train_labels[neighbours], (similarity / temperature).exp())
        right += int((votes.argmax(1) == test_labels[i : i + CHUNK]).sum())
    return right / len(test)
