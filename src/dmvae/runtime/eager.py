"""Networks in torch.compile, run as they were before."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def uncompiled() -> AbstractContextManager[object]:
    """Inside the block, compiled networks run eagerly: for rare calls, whose shapes would need a compilation, and for
    gradients that are differentiated again, which what is compiled cannot give."""
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
