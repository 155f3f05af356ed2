import pytest
import torch

from dmvae.losses.reconstruction import reconstruction_loss


def test_closed_form():
    x, recon = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), -0.5)
    assert float(reconstruction_loss(x, recon)) == 0.5
    assert float(reconstruction_loss(x, recon, l1=0.0, l2=4.0)) == 1.0
    assert float(reconstruction_loss(x, recon, l1=2.0, l2=1.0)) == 1.25


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="equal"):
        reconstruction_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
