"""Distribution matching in a training loop of your own: no recipe, no folder, any tokenizer.

Trains a small autoencoder on coloured shapes whose latents shall be standard normal. The lines that bring matching in
are marked.

    python examples/own_trainer.py --steps 200
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from dmvae.datasets.shapes import Shapes
from dmvae.generators.flow import FlowModelConfig
from dmvae.matching import DMD
from dmvae.references.gaussian import Gaussian

STUDENT_STEPS = 3  # a student that lags lets the latents overshoot
CLASSES, SHAPE = 8, (4, 8, 8)  # latents [n, 4, 8, 8] of images [n, 3, 32, 32]


def tokenizer() -> tuple[nn.Module, nn.Module]:
    encoder = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, SHAPE[0], 4, 2, 1))
    decoder = nn.Sequential(nn.ConvTranspose2d(SHAPE[0], 32, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1))
    return encoder, decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--weight", type=float, default=0.3, help="lambda of the matching loss")
    known = parser.parse_args()
    torch.manual_seed(0)
    data = Shapes(size=32, channels=3, count=2048).build("train")
    encoder, decoder = tokenizer()
    # Matching: an objective, the reference's velocity (in closed form here; a trained network will do), a student
    objective = DMD(guidance=1.0)
    teacher = Gaussian(SHAPE, CLASSES, std=1.0).velocity
    student = objective.new_student(SHAPE, CLASSES, teacher, FlowModelConfig(width=48, depth=2, heads=4))
    ours = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    its = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for step in range(known.steps):
        images, labels = data.__getitems__(torch.randint(len(data), (64,)))
        labels = torch.full_like(labels, CLASSES)  # "no label": those of a Gaussian say nothing of its samples
        x = images.float() / 127.5 - 1
        z = encoder(x)
        reconstruction = F.l1_loss(decoder(z), x)
        # Matching: its loss is added to yours ...
        matching, log = objective.loss(z, labels, teacher, student)
        loss = reconstruction + known.weight * matching
        ours.zero_grad()
        loss.backward()
        ours.step()
        # ... and the student learns the latents as they are
        for _ in range(STUDENT_STEPS):
            student_loss, _ = objective.student_loss(student, z.detach(), labels)
            its.zero_grad()
            student_loss.backward()
            its.step()
        if step % 50 == 0 or step == known.steps - 1:
            # Figures to log are scalars, or [sum, count]: DMD's gaps are pairs, one for each quarter of time
            total, count = torch.stack([pair for name, pair in log.items() if name.startswith("gap/")]).sum(0)
            say = f"gap {total / count:.3f}  latents: mean {z.mean():.2f}, std {z.std():.2f}"
            print(f"{step:5d}  reconstruction {reconstruction:.3f}  {say}")


if __name__ == "__main__":
    main()
