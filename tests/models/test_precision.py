"""In which precision networks compute."""

import pytest
import torch

from dmvae.models import transformer
from dmvae.runtime.precision import kind, pretend, tuned, uses_bf16, without_tf32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_and_keys_stay_in_the_precision_that_they_come_in(monkeypatch, dtype):
    """A float32 scale would make float32 of them: twice the memory to write and to read."""
    seen = []
    attend = transformer.attend
    monkeypatch.setattr(transformer, "attend", lambda *qkv: seen.extend(x.dtype for x in qkv) or attend(*qkv))
    network = transformer.Attention(16, 2)
    cos, sin = transformer.rope_tables(2, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        network(torch.randn(2, 4, 16), cos, sin)
    assert seen == [dtype] * 3


def test_tf32_is_off_where_float32_is_meant_and_on_again_after():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with without_tf32(torch.device("cuda")):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_cudnn_looks_for_the_fastest_kernels_in_training_alone():
    assert not torch.backends.cudnn.benchmark
    with tuned():
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


def test_a_plan_for_gpus_decides_as_on_one():
    cpu = torch.device("cpu")
    with pretend("cuda"):
        assert kind(cpu) == "cuda"
        assert uses_bf16(cpu, "auto")
        assert not uses_bf16(cpu, "float32")
    assert kind(cpu) == "cpu"
