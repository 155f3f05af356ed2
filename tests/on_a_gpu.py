"""Every stage keeps its tensors on the device, shown on one that is pretended. test_on_a_gpu.py runs these tests."""

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae.runtime.files import read_json
from pretend_gpu import There, pretend_gpu


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.nn.Linear(3, 3)(x),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: torch.ones(3).add_(x),
        lambda x: torch.zeros(3)[x > 0],
        lambda x: x.numpy(),
    ],
)
def test_tensors_of_two_devices_do_not_mix(mix):
    with pretend_gpu() as device, pytest.raises((RuntimeError, TypeError)):
        mix(torch.ones(3, device=device))


def test_what_a_gpu_takes_goes_on():
    with pretend_gpu() as device:
        x = torch.arange(3.0, device=device, requires_grad=True)
        (x * torch.tensor(2.0)).square().sum().backward()
        assert isinstance(x.grad, There)
        assert x.grad.cpu().tolist() == x.grad.tolist() == [0, 8, 16]
        assert x[torch.tensor([2, 0])].tolist() == [2, 0]
        with torch.inference_mode():
            assert torch.ones(2).to(device, torch.float64).device == device
        layer = torch.nn.Linear(3, 1)
        weight = layer.weight
        assert layer.to(device).weight is weight
        assert layer(x).device == torch.zeros(1).copy_(x[:1]).to(device).device == device


def ended(folder):
    """Of a whole run in float32: weights and samples of the KL-VAE, and the figures of both variants."""
    folder.mkdir()
    jobs = tiny.run(tiny.write(folder, run__precision="float32"))
    folders = [job.folder for job in jobs if job.variant == "kl"]
    files = {file.relative_to(folder): file for of in folders for file in of.rglob("*.safetensors")}
    figures = [read_json(job.folder / "metrics.json", dict)["metrics"] for job in jobs if job.stage.name == "evaluate"]
    return {name: load_file(file) for name, file in files.items()}, figures


def test_a_whole_run_there_ends_as_on_the_cpu(tmp_path):
    """Matching draws samples of its reference on the CPU, whose numbers go on there from those of the networks; on a
    GPU they are apart. So of its figures only the names are compared."""
    with pretend_gpu():
        there, (matched, kl) = ended(tmp_path / "there")
    here, (known, as_known) = ended(tmp_path / "here")
    assert there.keys() == here.keys()
    for name, tensors in here.items():
        for key, value in tensors.items():
            if value.ndim > 1:  # Adam takes whole steps along rounding errors in biases that a norm takes away
                torch.testing.assert_close(there[name][key], value, rtol=1e-4, atol=1e-5)
    assert kl == pytest.approx(as_known, rel=2e-3)
    assert matched.keys() == known.keys()
