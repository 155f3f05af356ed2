"""In which precision networks compute."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from dmvae.evaluation.features import in_chunks
from dmvae.models import transformer
from dmvae.models.effnet import StridedDepthwise
from dmvae.models.layers import group_norm
from dmvae.runtime.precision import full_precision, kind, pretend, tuned, uses_bf16, with_tf32, without_tf32
from dmvae.tokenizers import adapted, autoencoder
from dmvae.tokenizers.identity import IdentityTokenizer
from dmvae.training import loop
from dmvae.training.trainer import Trainer
from processes import on_ranks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_and_keys_stay_in_the_precision_that_they_come_in(monkeypatch, dtype):
    """A float32 scale would make float32 of them: twice the memory to write and to read."""
    seen = []
    attend = transformer.attend
    monkeypatch.setattr(transformer, "attend", lambda *qkv: seen.extend(x.dtype for x in qkv) or attend(*qkv))
    network = transformer.Attention(16, 2, qk_norm=True)
    cos, sin = transformer.rope_tables(2, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        network(torch.randn(2, 4, 16), cos, sin)
    assert seen == [dtype] * 3


def test_slow_kernels_in_bf16_on_a_cpu_are_gone_round():
    """Of group norm in channels_last, and of strided depthwise convolutions backward."""
    strided = StridedDepthwise(4, 4, 3, stride=2, groups=4)
    x = torch.randn(2, 4, 6, 6).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    for network, exact in (
        (group_norm(4), lambda: F.group_norm(x.float(), 4, eps=1e-6)),
        (strided, lambda: F.conv2d(F.pad(x.float(), (0, 1, 0, 1)), strided.weight, strided.bias, 2, groups=4)),
    ):
        with Dtypes() as seen, torch.autocast("cpu", torch.bfloat16):
            found = network(x)
        assert seen.of == [torch.float32]
        assert found.dtype is torch.bfloat16
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found, exact().bfloat16())
        (gradient,) = torch.autograd.grad(found.float().square().sum(), x)
        assert gradient.abs().min() > 0
        with Dtypes() as seen, torch.autocast("cpu", torch.bfloat16), pretend("cuda"):
            network(x)
        assert torch.bfloat16 in seen.of, "a GPU has kernels of its own"


class Dtypes(TorchDispatchMode):
    """Of what goes into kernels of group norm and convolution."""

    def __init__(self):
        super().__init__()
        self.of = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.native_group_norm.default, torch.ops.aten.convolution.default):
            self.of += [args[0].dtype]
        return func(*args, **(kwargs or {}))


def test_tf32_is_off_where_float32_is_meant_and_on_again_after():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with without_tf32(torch.device("cuda")):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_tf32_of_products_is_on_where_it_is_allowed_but_for_what_needs_its_digits():
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    gpu, x = torch.device("cuda"), torch.ones(1)
    before = products.allow_tf32, convolutions.allow_tf32, products.fp32_precision
    assert before[:2] == (False, True)
    for device, allowed in ((gpu, False), (torch.device("cpu"), True)):
        with with_tf32(device, allowed):
            assert (products.allow_tf32, convolutions.allow_tf32, products.fp32_precision) == before
            with full_precision(x):
                assert convolutions.allow_tf32, "as torch has it"
    with with_tf32(gpu, True):
        assert products.allow_tf32
        for block in (full_precision(x), without_tf32(gpu)):
            with block:
                assert not products.allow_tf32
        assert products.allow_tf32
        with torch.autocast("cpu", torch.bfloat16), full_precision(x):
            assert not torch.is_autocast_enabled("cpu")
    assert (products.allow_tf32, convolutions.allow_tf32, products.fp32_precision) == before


SETTINGS = {
    "nothing": "",
    "products": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "convolutions": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "all": "torch.backends.fp32_precision = 'tf32'",
    "all exact": "torch.backends.fp32_precision = 'ieee'",
    "products, by the older name": "torch.backends.cuda.matmul.allow_tf32 = True",
    "convolutions, by the older name": "torch.backends.cudnn.allow_tf32 = False",
    "convolutions on the CPU": "torch.backends.mkldnn.conv.fp32_precision = 'bf16'",
    "high": "torch.set_float32_matmul_precision('high')",
    "medium": "torch.set_float32_matmul_precision('medium')",
}


def look() -> list[str]:
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    places = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    return [place.fp32_precision for place in places]


def exact_and_back(rank: int, setting: str) -> None:
    exec(setting)
    before = look()
    with without_tf32(torch.device("cuda")):
        assert not {"tf32", "bf16"} & {*look()}, look()
    x = torch.ones(3, 2)
    with with_tf32(torch.device("cuda"), True):
        assert look()[0] == "tf32", look()
        with full_precision(x):
            assert not {"tf32", "bf16"} & {*look()}, look()
        assert look()[0] == "tf32", look()
    assert look() == before, (look(), before)
    assert torch.equal(in_chunks(lambda y: y @ torch.eye(2), x), x)
    assert look() == before, (look(), before)


@pytest.mark.parametrize("setting", SETTINGS)
def test_exact_products_leave_what_the_caller_has_set_by_either_of_torch_s_names(setting):
    """These are of the whole process, and torch raises where older and newer names are mixed."""
    assert on_ranks(exact_and_back, SETTINGS[setting], count=1) == [0]


def test_cudnn_looks_for_the_fastest_kernels_in_training_alone():
    assert not torch.backends.cudnn.benchmark
    with tuned():
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


@pytest.fixture
def tf32():
    """TF32 wherever it is not forbidden."""
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = True
    yield
    for flag, value in zip(flags, before, strict=True):
        flag.allow_tf32 = value


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("module", [autoencoder, adapted])
def test_images_are_decoded_without_tf32(monkeypatch, module):
    """Of every tokenizer, but in training, where it is left as torch has it."""
    if module is autoencoder:
        model = autoencoder.Autoencoder.from_config(tiny.RECIPE["autoencoder"] | {"image_size": 12})
        z, network, name = torch.zeros(1, 4, 3, 3), model.decoder, "forward"
    else:
        model = adapted.adapt(IdentityTokenizer(patch=4), size=12, channels=3, pretrained=True)
        z, network, name = torch.zeros(1, 48, 3, 3), model.network, "decode"
    inside, decode = [], getattr(network, name)

    def recorded(z):
        inside.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return decode(z)

    monkeypatch.setattr(network, name, recorded)
    monkeypatch.setattr(module, "without_tf32", lambda device: without_tf32(torch.device("cuda")))
    with torch.no_grad():
        model.decode(z)
    model.decode(z)
    assert inside == [(False, False), (True, True)]


@pytest.mark.parametrize("allowed", [False, True])
def test_training_steps_alone_are_tuned_and_rounded_to_tf32(tmp_path, monkeypatch, allowed):
    """And none of what a stage does besides."""
    inside, step = [], Trainer.train_step

    def recorded(trainer, batch):
        inside.append((torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32))
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", recorded)
    monkeypatch.setattr(loop, "with_tf32", lambda device, allowed: with_tf32(torch.device("cuda"), allowed))
    tiny.run(tiny.write(tmp_path, run__tf32=allowed), "kl", "tokenizer")
    assert inside == [(True, allowed)] * tiny.RECIPE["tokenizer"]["steps"]
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_plan_for_gpus_decides_as_on_one():
    cpu = torch.device("cpu")
    with pretend("cuda"):
        assert kind(cpu) == "cuda"
        assert uses_bf16(cpu, "auto")
        assert not uses_bf16(cpu, "float32")
    assert kind(cpu) == "cpu"


@pytest.mark.parametrize("fixed_std", [None, [0.1] * 4])
def test_a_tokenizer_in_half_precision_decodes_what_it_encodes_with_gradients_and_without(fixed_std):
    drawn = {"fixed_std": fixed_std, "drawn": fixed_std is not None}
    model = autoencoder.Autoencoder.from_config(tiny.RECIPE["autoencoder"] | {"image_size": 12} | drawn).bfloat16()
    x = (torch.rand(2, 3, 12, 12) * 2 - 1).bfloat16()
    z = model.encode(x).latents
    with torch.no_grad():
        plain = model.decode(z).sample
    kept = model.decode(z.requires_grad_() if z.is_leaf else z).sample
    assert kept.requires_grad
    torch.testing.assert_close(kept.detach().float(), plain.float(), atol=0.05, rtol=0)
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.decode(model.encode(x.float()).latents).sample.requires_grad
