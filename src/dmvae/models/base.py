"""What our networks share as diffusers models."""

from __future__ import annotations

from typing import Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin


class Model(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """`save_pretrained` writes safetensors and config.json; `from_pretrained` reads them from a folder or a hub."""

    config: Any
    """The constructor's arguments, as attributes."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As diffusers', but built in memory and then filled: its meta-device start would leave buffers that no
        file holds (rotary tables, normalisation of pixels) without values."""
        return super().from_pretrained(pretrained_model_name_or_path, **{"low_cpu_mem_usage": False} | kwargs)
