"""Networks on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar, cast

import torch
from diffusers.models import modeling_utils
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dmvae.registry import NoMember, cause_of
from dmvae.runtime.files import atomic_write, read_json

M = TypeVar("M", bound=ModelMixin)
NEAR = {
    "tokenizer": ("vae", "autoencoder", "pipeline/vae", "latents/autoencoder"),
    "generator": ("transformer", "generator", "teacher", "pipeline/transformer", "generator/generator"),
}
"""Folders below the one that a user gave, where the artifact may lie; the last one is its place in RUN/VARIANT."""


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
        places = [Path(folder) / below for below in NEAR.get(what, ())]
        near = next((place for place in places if (place / "config.json").is_file()), None)
        how = f"did you mean {near}?" if near else f"give the folder that a {what} was saved in"
        if places and not near:
            how += f", such as RUN/VARIANT/{NEAR[what][-1]}"
        lacks = "no config.json" if Path(folder).is_dir() else f"no such folder (looked from {Path.cwd()})"
        raise ValueError(f"{folder}: no {what} is here: {lacks}; {how}")
    try:
        name = str(read_json(file, dict).get("_class_name"))
    except ValueError as error:
        raise ValueError(f"{file}: no config of a {what}, or cut off ({error}); copy the folder again") from error
    if name not in classes:
        raise ValueError(f"{folder}: holds {name}, not {' or '.join(classes)}")
    return classes[name]


def require_weights(folder: Path) -> None:
    """Raise ValueError where a folder holds no weights, or a safetensors file that is cut off. Reads names and file
    headers only, so that a dry run can ask."""
    files = [file for ending in ("safetensors", "bin") for file in sorted(folder.glob(f"*.{ending}"))]
    if not files:
        raise ValueError(f"{folder}: no weights are here: no .safetensors or .bin; copy the folder again")
    if all("." in file.stem for file in files):  # as diffusers names those of a variant, model.fp16.safetensors
        variant = files[0].stem.partition(".")[2].partition("-")[0]
        raise ValueError(
            f"{folder}: {files[0].name} is of the variant {variant!r}, and no others are here: load it in diffusers "
            f"with variant={variant!r}, save_pretrained it to another folder, and name that one"
        )
    for file in files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"{file}: damaged or cut off ({error}); copy the folder again") from error


def load_strictly(cls: type[M], path: str | Path, **kwargs: object) -> M:
    """`cls.from_pretrained` in float32. Raises ValueError for missing, unknown or misshapen weights, of which diffusers
    only warns, and for whatever a damaged config makes the class's own code raise."""
    # from_pretrained returns a pair with output_loading_info
    read = cast("Callable[..., tuple[M, dict[str, list[object]]]]", cls.from_pretrained)
    pages = logging.getLogger(modeling_utils.__name__)  # of names, in warnings of what is reported below
    level = pages.level
    try:
        pages.setLevel(logging.ERROR)
        model, info = read(
            path,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,  # see Model.from_pretrained
            ignore_mismatched_sizes=True,  # they are reported below, with the rest
            output_loading_info=True,
            **kwargs,
        )
    except Exception as error:
        what = error if isinstance(error, OSError | RuntimeError | ValueError) else f"{type(error).__name__}: {error}"
        if cause_of(error, NoMember):
            what = f"{error}. One of a plugin is found once its file is named: --plugins FILE, or load_plugins([FILE])"
        raise ValueError(f"{path}: config and weights do not load as {cls.__name__}: {what}") from error
    finally:
        pages.setLevel(level)
    kinds = {"missing": "missing_keys", "unknown": "unexpected_keys", "of another shape": "mismatched_keys"}
    wrong = [f"{len(info[key])} {kind}, such as {min(map(str, info[key]))}" for kind, key in kinds.items() if info[key]]
    if wrong:
        raise ValueError(f"{path}: these are not the weights of this {cls.__name__}: {'; '.join(wrong)}")
    return model
