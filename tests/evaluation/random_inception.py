"""A file of random weights for torch-fidelity's Inception, drawn so that its features vary as trained ones do."""

import math
from pathlib import Path

import torch


def write(path: Path, seed: int = 0) -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, state, *args, **kwargs):
            pass  # the constructor reads a file; this one is to be written

    torch.save({}, path)
    state = Blank("blank", ["2048"], feature_extractor_weights_path=str(path)).state_dict()
    generator = torch.Generator().manual_seed(seed)
    for value in state.values():
        if value.ndim > 1:  # He's initialisation keeps the size of activations through the layers
            value.normal_(0, math.sqrt(2 / value[0].numel()), generator=generator)
    torch.save(state, path)
    return path
