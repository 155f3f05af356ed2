"""References, and samples of theirs, of another form than stages take: what is wrong with each is told."""

from types import SimpleNamespace

import pytest
import torch

from dmvae.stages.reference import require_form, require_samples, require_velocity

RETURNS = {
    "latents.double(), labels": r"samples \[2000, 4, 3, 3\] \(torch.float64\) and labels \[2000\]; give float32",
    "latents, labels.float()": r"labels from 0 to 2 \(torch.float32\); the data has classes 0 to 2, int64",
    "latents.numpy(), labels": r"\['ndarray', 'Tensor'\]; give two tensors",
    "latents": "Tensor; give two tensors",
    "None": "NoneType; give two tensors",
    "latents[1:], labels[1:]": "1999 samples, where 2000 were asked for",
    "latents, labels + 1": r"labels from 1 to 3 \(torch.int64\); the data has classes 0 to 2",
    "latents / 0, labels": "samples that are not finite: ",
}
FORMS = {
    "std=torch.zeros(4)": r"a reference whose `std` is \[0.0, 0.0, 0.0, 0.0\]; all of it has to be finite and above 0",
    "std=1.0": r"a reference whose `std` is 1.0; give a float32 tensor \[4\]",
    "mean=torch.zeros(5)": r"a reference whose `mean` is torch.float32 \[5\]; give a float32 tensor \[4\]",
    "mean=torch.zeros(4).double()": r"a reference whose `mean` is torch.float64 \[4\]",
    "sample=None": "a SimpleNamespace, which has no `sample`",
    "sample=lambda n: None": "a reference whose `sample` cannot be called as sample.n, rng.: too many positional",
}


@pytest.mark.parametrize("returned", RETURNS)
def test_samples_of_another_form_are_told(returned):
    inputs = SimpleNamespace(latent_shape=(4, 3, 3), num_classes=3)
    latents, labels = torch.zeros(2000, 4, 3, 3), torch.arange(2000) % 3
    require_samples("mine", (latents, labels), 2000, inputs)
    with pytest.raises(
        ValueError, match=f"reference.distribution: 'mine' returned {RETURNS[returned]}|{RETURNS[returned]}"
    ):
        require_samples("mine", eval(returned, {"latents": latents, "labels": labels}), 2000, inputs)


@pytest.mark.parametrize("wrong", FORMS)
def test_a_reference_of_another_form_is_told(wrong):
    whole = {"mean": torch.zeros(4), "std": torch.ones(4), "velocity": None, "sample": lambda n, rng: None}
    require_form("mine", SimpleNamespace(**whole), 4)
    with pytest.raises(ValueError, match=f"reference.distribution: 'mine' returned {FORMS[wrong]}"):
        require_form("mine", SimpleNamespace(**(whole | eval(f"dict({wrong})"))), 4)


@pytest.mark.parametrize(
    ("velocity", "closed_form", "told"),
    [
        (None, True, "has no velocity, and its closed_form, .* is True; let the two agree"),
        (lambda z, t, labels: z, False, "has a velocity, and its closed_form, .* is False"),
        (
            lambda z, t, labels: z[:, :1],
            True,
            r"has a velocity that gives a tensor \[8, 1, 3, 3\]; give velocities \[8, 4, 3, 3\]",
        ),
        (lambda z, t, labels: None, True, r"has a velocity that gives NoneType"),
    ],
)
def test_a_closed_form_that_is_none_is_told(velocity, closed_form, told):
    config, z, labels = SimpleNamespace(type="mine", closed_form=closed_form), torch.zeros(8, 4, 3, 3), torch.zeros(8)
    with pytest.raises(ValueError, match=f"reference.distribution: 'mine' {told}"):
        require_velocity(config, SimpleNamespace(velocity=velocity), z, labels)
    good = (lambda z, t, labels: t.view(-1, 1, 1, 1) * z) if closed_form else None
    require_velocity(config, SimpleNamespace(velocity=good), z, labels)
