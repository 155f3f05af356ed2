"""Networks on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import save_file
from torch import nn

from dmvae.runtime.files import atomic_write

M = TypeVar("M")


def save_network(module: nn.Module, folder: Path) -> None:
    """Write as a diffusers model folder (a plain module as model.safetensors alone)."""
    with atomic_write(folder) as part:
        if isinstance(module, ModelMixin):
            module.save_pretrained(part)
        else:
            part.mkdir()
            save_file({k: v.contiguous() for k, v in module.state_dict().items()}, part / "model.safetensors")


def artifact_class(folder: str | Path, known: Iterable[type[M]], what: str) -> type[M]:
    """The one of the `known` classes whose artifact lies in the folder, as its config.json says; `what` names them in
    errors. Raises ValueError where it is none of them."""
    file, classes = Path(folder) / "config.json", {cls.__name__: cls for cls in known}
    if not file.is_file():
        places = (Path(folder) / below for below in ("vae", "autoencoder", "pipeline/vae", "latents/autoencoder"))
        near = next((place for place in places if what == "tokenizer" and (place / "config.json").is_file()), None)
        how = f"did you mean {near}?" if near else f"give the folder that a {what} was saved in"
        if what == "tokenizer" and not near:
            how += ", such as RUN/VARIANT/latents/autoencoder"
        raise ValueError(f"{folder}: no {what} is here: no config.json; {how}")
    try:
        name = dict(json.loads(file.read_text())).get("_class_name")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: no config of a {what}, or cut off ({error}); copy the folder again") from error
    if name not in classes:
        raise ValueError(f"{folder}: holds {name}, not {' or '.join(classes)}")
    return classes[name]
