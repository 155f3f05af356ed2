"""Distribution matching of diffusers' AutoencoderKL in a plain training loop: no recipe, no folder of runs.

A teacher learns the velocity of the reference; then the autoencoder is trained to reconstruct while a student follows
its latents, and teacher and student together say where the latents must go. The lines of the method are marked (1) to
(4); everything else is any trainer.

    python examples/match_autoencoder_kl.py --out vae  # random weights; else a hub's id, or a folder:
    python examples/match_autoencoder_kl.py --model stabilityai/sd-vae-ft-ema --learning-rate 2e-5 --out vae
"""

import argparse

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from dmvae.datasets.shapes import Shapes
from dmvae.generators.flow import FlowModelConfig
from dmvae.matching import DMD, Context

CLASSES, SIZE, IMAGES, BATCH = 8, 32, 2048, 16
EVERY = 2  # one turn of the autoencoder for EVERY turns of the student


def autoencoder(model: str | None, subfolder: str | None = None) -> AutoencoderKL:
    if model is not None:
        return AutoencoderKL.from_pretrained(model, subfolder=subfolder)
    return AutoencoderKL(  # stride 4, 4 latent channels
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def centres(labels: torch.Tensor, channels: int) -> torch.Tensor:
    """[n, C, 1, 1]: the corner of a cube for each of eight classes, in the first three channels."""
    bits = torch.stack([labels >> i & 1 for i in range(3)], dim=1) * 1.6 - 0.8
    return F.pad(bits, (0, channels - 3))[:, :, None, None]


def reference(n: int, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples [n, C, H, W] with labels [n], whatever you like: here noise around the class's centre. Each element has
    mean 0 and standard deviation 1 over all classes."""
    labels = torch.randint(CLASSES, (n,), generator=generator)
    mean = centres(labels, shape[0])
    spread = (1 - mean.square()).sqrt()
    return mean + spread * torch.randn(n, *shape, generator=generator), labels


def train_teacher(objective: DMD, shape: tuple[int, int, int], steps: int, generator: torch.Generator):
    teacher = FlowModelConfig(width=48, depth=2, heads=4).build(shape, CLASSES)  # any velocity(z_t, t, labels) will do
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=2e-3)
    for _ in range(steps):
        y, labels = reference(BATCH, shape, generator)
        # (1) flow matching on samples of the reference; a share of the labels is dropped, for guidance
        loss, _ = objective.teacher_loss(teacher, y, labels, Context(generator, null_label=CLASSES, label_dropout=0.1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return teacher.requires_grad_(False).eval()


def match(
    vae: AutoencoderKL, steps: int, teacher_steps: int, weight: float, learning_rate: float = 1e-3, seed: int = 0
):
    """Train `vae` in place; returns the teacher and the student."""
    generator = torch.Generator().manual_seed(seed)
    data = Shapes(size=SIZE, channels=3, count=IMAGES).build("train")
    images = data.__getitems__(range(IMAGES))[0].float() / 127.5 - 1
    # Eight classes that can be seen: is there more red, more green, more blue than in the median image?
    above = images.mean((2, 3)) > images.mean((2, 3)).median(0).values
    classes = (above * torch.tensor([1, 2, 4])).sum(1)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.randint(IMAGES, (BATCH,), generator=generator)
        return images[index], classes[index]

    # The reference is one of normalised latents: mean and standard deviation are those before matching.
    with torch.no_grad():
        z = torch.cat([vae.encode(batch()[0]).latent_dist.sample(generator) for _ in range(8)])
    mean, std = z.mean((0, 2, 3), keepdim=True), z.std((0, 2, 3), keepdim=True)
    shape = tuple(z.shape[1:])

    # (2) the objective: guidance scale and times in which the two velocities are compared (0 is noise, 1 is data)
    objective = DMD(guidance=1.0, time_range=(0.02, 0.98))
    teacher = train_teacher(objective, shape, teacher_steps, generator)
    student = objective.new_student(shape, CLASSES, teacher, FlowModelConfig())  # a copy of the teacher that trains
    ours = torch.optim.AdamW(vae.parameters(), lr=learning_rate)
    its = torch.optim.AdamW(student.parameters(), lr=2e-3)

    for step in range(steps):
        x, labels = batch()
        context = Context(generator, null_label=CLASSES, progress=step / steps, label_dropout=0.1)
        turn = step % EVERY == 0
        with torch.set_grad_enabled(turn):
            raw = vae.encode(x).latent_dist.sample(generator)  # draws, so that the posterior's spread learns too
            z = (raw - mean) / std
        if turn:
            # (3) a scalar whose gradient reaches z alone, not teacher or student: add it to your own loss
            matching, _ = objective.loss(z, labels, teacher, student, context)
            reconstruction = F.l1_loss(vae.decode(raw).sample, x)
            loss = reconstruction + weight * matching
            ours.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            ours.step()
        # (4) the student learns the latents as they are now
        student_loss, _ = objective.student_loss(student, z.detach(), labels, context)
        its.zero_grad()
        student_loss.backward()
        its.step()
        if turn and (step % (20 * EVERY) == 0 or step + EVERY >= steps):
            centre = centres(labels, shape[0])  # 1 in the reference: latents lie where their class does
            along = ((z * centre).mean() / centre.square().mean()).item()
            say = f"latents: mean {z.mean().item():.2f}, std {z.std().item():.2f}, along the class's centre {along:.2f}"
            print(f"{step:5d}  reconstruction {reconstruction.item():.3f}  {say}")

    # For pipelines: (z - shift_factor) * scaling_factor has mean 0 and standard deviation 1.
    with torch.no_grad():
        z = torch.cat([vae.encode(batch()[0]).latent_dist.sample(generator) for _ in range(8)])
    vae.register_to_config(scaling_factor=1 / z.std().item(), shift_factor=z.mean().item())
    return teacher, student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="AutoencoderKL by folder or hub id; random weights unless given")
    parser.add_argument("--subfolder", help="of the model, such as vae")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--teacher-steps", type=int, default=300)
    parser.add_argument("--weight", type=float, default=1.0, help="lambda of the matching loss")
    rate = "of the autoencoder; a trained one needs less than the default of %(default)s, such as 2e-5"
    parser.add_argument("--learning-rate", type=float, default=1e-3, help=rate)
    parser.add_argument("--out", help="folder to save the autoencoder in")
    known = parser.parse_args()
    torch.manual_seed(0)
    vae = autoencoder(known.model, known.subfolder)
    match(vae, known.steps, known.teacher_steps, known.weight, known.learning_rate)
    if known.out:
        vae.save_pretrained(known.out)
        print(f"AutoencoderKL.from_pretrained({known.out!r}) loads it")


if __name__ == "__main__":
    main()
