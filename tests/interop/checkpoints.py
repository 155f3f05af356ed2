"""Checkpoints as other projects write them."""

import torch


def save(path, content):
    torch.save(content, path)
    return path
