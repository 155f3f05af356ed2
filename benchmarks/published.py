"""The matching stage's steps beside the same steps as the paper (arXiv 2512.07778) tells them, on equal networks:

    python -m benchmarks.published [--recipe recipes/demo.yaml] [--compile] [--seconds 20] [--device cuda]
                                   [--section.field value]

`Published` is written from the paper's equations and the order in which it names the updates, with the formulas of
dmvae.losses; no line of it is the authors' code, which may be faster or slower. What it does as a text reads, and
dmvae does not:

- teacher, student and discriminator are called as they stand in the equations: guidance asks a network twice, real and
  reconstructed images go through the discriminator one after the other, and nobody is frozen meanwhile;
- the loss is one sum, of which one backward pass takes the gradient; so the adaptive weight's two gradients at the last
  layer run back through the perceptual network and the discriminator, and that pass runs there again;
- torch's AdamW and averages as they come, parameter by parameter.

Networks, batch, losses, precision, random numbers and order of updates are equal, and so are the losses' values
(tests/test_published.py). Of the paper's "the tokenizer is updated at every fifth step" there are two readings: every
step runs the tokenizer as a whole, or steps of the student alone leave the decoder out. Both are timed. With --compile
the same parts of all networks are compiled. Data are noise and weights random: nothing is fetched or read. The loops
take turns, and the best turn of each counts, for other programs only slow what is timed.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import fastest
from dmvae.commands.parser import parse_overrides
from dmvae.flow.loss import drop_labels
from dmvae.inputs import Blueprint
from dmvae.losses.adversarial import adaptive_weight, augment, hinge_discriminator, hinge_generator
from dmvae.losses.reconstruction import reconstruction_loss
from dmvae.matching.dmd import DMD
from dmvae.recipe import Recipe, load
from dmvae.runtime.precision import autocast, tuned
from dmvae.runtime.random import Random
from dmvae.stages.matching import MatchingStage, MatchingTraining
from dmvae.training.preparing import compile_networks
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer

Figures = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/demo.yaml", help="file or name (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each loop (default: %(default)s)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the parts that `run.compile: true` compiles, of both loops' networks",
    )
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (default: %(default)s)")
    args, rest = parser.parse_known_args()
    recipes = load(args.recipe, parse_overrides(rest)).values()
    matched = [recipe for recipe in recipes if recipe.section("matching") is not None]
    if not matched:
        parser.error(f"{args.recipe} has no stage `matching`")
    ours = trainer_of(matched[0], args.device)
    whole, lean = Published(ours, whole=True), Published(ours, whole=False)
    if args.compile:
        compile_networks(nn.ModuleList(m for n in (ours, whole, lean) for m in n.networks.children()))
    x = torch.randn(ours.config.batch_size, *ours.stage.item_shape, device=args.device)
    x = x.to(memory_format=torch.channels_last)
    labels = torch.arange(len(x), device=args.device) % 10

    def our_step(step: int) -> None:
        ours.step = step
        for _ in ours.train_step(Batch(x, labels, step, step + 1)):
            pass

    with tuned():
        best = fastest(
            [our_step, lambda step: whole.step(x, labels, step), lambda step: lean.step(x, labels, step)], args.seconds
        )
    mine, theirs, without = (len(x) / seconds for seconds in best)
    print(
        f"matching, guidance 5, 5 steps of the student, {'compiled' if args.compile else 'eager'}, {args.device}, "
        f"{torch.get_num_threads()} threads: {mine:.0f} images/s\n"
        f"  {mine / theirs:.2f} times the paper's loop ({theirs:.0f} images/s)\n"
        f"  {mine / without:.2f} times the same without the decoder in the student's steps ({without:.0f} images/s)"
    )


def papers(recipe: Recipe) -> Recipe:
    """The recipe with the paper's settings of matching."""
    objective = DMD(guidance=5.0)
    section = dataclasses.replace(
        recipe.section("matching"), objective=objective, student_steps=5, student_warmup=0, balance="fixed", until=None
    )
    return dataclasses.replace(recipe, matching=section)


def trainer_of(recipe: Recipe, device: torch.device) -> Trainer:
    """Our training, with random weights, at the paper's settings."""
    recipe = papers(recipe)
    reads = {name: recipe.section(name) for name in MatchingStage.reads if recipe.section(name) is not None}
    inputs = Blueprint(recipe, "", reads, 10, fake=False)
    inputs.device = device
    return Trainer(MatchingStage(recipe.section("matching"), inputs))


class Published:
    """A copy of the trainer's networks, trained by the paper's loop. whole: the decoder runs in every step."""

    def __init__(self, trainer: Trainer, whole: bool) -> None:
        config = trainer.config
        assert isinstance(config, MatchingTraining)
        assert isinstance(config.objective, DMD)
        self.config, self.objective, self.whole = config, config.objective, whole
        self.inputs, self.key = trainer.inputs, trainer.key
        self.losses = trainer.inputs.sections.losses
        self.networks = copy.deepcopy(trainer.networks)
        self.optimizers = {
            name: torch.optim.AdamW(
                parameters,
                lr=self.networks.learning_rates.get(name, config.learning_rate),
                betas=config.betas,
                weight_decay=config.weight_decay,
            )
            for name, parameters in self.networks.trains.items()
        }
        self.average = [p.detach().clone() for p in self.networks.trains["tokenizer"]]

    def step(self, x: Tensor, labels: Tensor, step: int) -> Figures:
        """One step on images x [n, c, h, w] and labels [n], with the random numbers of our step of that number; what
        ours logs of losses and gradients, by the same names."""
        networks, model = self.networks, self.networks.autoencoder
        rng, figures = Random(*self.key, step, device=x.device), Figures()
        turn = step % self.config.student_steps == 0
        with autocast(x.device, self.inputs.sections.run.precision):
            with torch.set_grad_enabled(turn or self.whole):
                raw = model.encode(x).latents
                recon = model.decode(raw).sample.float() if turn or self.whole else None
            z = model.normalize(raw.float())
            if turn:
                assert recon is not None
                loss = self.tokenizer_loss(x, recon, z, labels, rng, figures)
        if turn:
            figures["tokenizer/gradient_norm"] = self.move("tokenizer", loss)
            with torch.no_grad():
                for kept, p in zip(self.average, networks.trains["tokenizer"], strict=True):
                    kept.mul_(self.config.ema).add_(p, alpha=1 - self.config.ema)
            if networks.discriminator is not None:
                with autocast(x.device, self.inputs.sections.run.precision):
                    loss = self.discriminator_loss(x, recon.detach(), rng)
                figures["discriminator/loss"] = loss.detach()
                figures["discriminator/gradient_norm"] = self.move("discriminator", loss)
        with autocast(x.device, self.inputs.sections.run.precision):
            loss = self.student_loss(z.detach(), labels, rng)
        return figures | {"student/loss": loss.detach(), "student/gradient_norm": self.move("student", loss)}

    def tokenizer_loss(
        self, x: Tensor, recon: Tensor, z: Tensor, labels: Tensor, rng: Random, figures: Figures
    ) -> Tensor:
        """|x - recon| + perceptual + weight * adversarial + lambda * matching; the weight is adaptive, as the paper's,
        where the recipe's is."""
        networks, losses = self.networks, self.losses
        matching = self.matching_loss(z, labels, rng)
        loss = reconstruction_loss(x, recon, l1=losses.l1, l2=losses.l2)
        if networks.perceptual is not None:
            loss = loss + networks.perceptual(recon, x)
        if networks.discriminator is not None:
            gan = hinge_generator(networks.discriminator(self.seen(recon, rng)))
            weight = gan.new_tensor(losses.adversarial.weight)
            if losses.adversarial.adaptive:
                last = networks.autoencoder.parts().last_layer
                (at_last,) = torch.autograd.grad(loss, last, retain_graph=True)
                (gan_at_last,) = torch.autograd.grad(gan, last, retain_graph=True)
                weight = weight * adaptive_weight(at_last, gan_at_last)
            loss = loss + weight * gan
            figures["adversarial/weight"] = weight
        figures |= {"tokenizer/loss": loss.detach(), "matching/loss": matching.detach()}
        return loss + self.config.weight * matching

    def matching_loss(self, z: Tensor, labels: Tensor, rng: Random) -> Tensor:
        """mean (z - stop(z - g))^2 / 2, g = (z_hat_student - z_hat_teacher) / mean |z - z_hat_teacher|, with
        z_hat = z_t + (1 - t) v and v = v_uncond + w (v_cond - v_uncond)."""
        low, high = self.objective.time_range
        t = (low + (high - low) * rng.uniform(len(z))).view(-1, 1, 1, 1)
        noise = rng.normal(*z.shape)
        nobody = torch.full_like(labels, self.inputs.num_classes)
        with torch.no_grad():
            z_t = (1 - t) * noise + t * z

            def estimate(network: Callable[..., Tensor]) -> Tensor:
                given, free = network(z_t, t.flatten(), labels).float(), network(z_t, t.flatten(), nobody).float()
                return z_t + (1 - t) * (free + self.objective.guidance * (given - free))

            assert self.networks.teacher is not None
            assert self.networks.student is not None
            teacher, student = estimate(self.networks.teacher), estimate(self.networks.student)
            g = (student - teacher) / (z - teacher).abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-8)
        return 0.5 * (z - (z - g).detach()).square().mean()

    def discriminator_loss(self, x: Tensor, recon: Tensor, rng: Random) -> Tensor:
        """The hinge loss, and the consistency of answers where the recipe asks for it."""
        discriminator, weight = self.networks.discriminator, self.losses.adversarial.consistency
        assert discriminator is not None
        real, fake = discriminator(self.seen(x, rng)), discriminator(self.seen(recon, rng))
        loss = hinge_discriminator(real, fake)
        if weight > 0:
            kept = F.mse_loss(discriminator(x), real) + F.mse_loss(discriminator(recon), fake)
            loss = loss + weight * kept / 2
        return loss

    def student_loss(self, z: Tensor, labels: Tensor, rng: Random) -> Tensor:
        """mean |v(z_t, t) - (z - noise)|^2, with a share of the labels dropped."""
        assert self.networks.student is not None
        labels = drop_labels(labels, self.config.label_dropout, self.inputs.num_classes, rng)
        t = self.config.times.sample(len(z), rng)
        noise, at = rng.normal(*z.shape), t.view(-1, 1, 1, 1)
        velocity = self.networks.student((1 - at) * noise + at * z, t, labels).float()
        return (velocity - (z - noise)).square().mean()

    def seen(self, x: Tensor, rng: Random) -> Tensor:
        """What the discriminator sees of images."""
        return augment(x, rng, self.losses.adversarial.cutout) if self.losses.adversarial.augment else x

    def move(self, name: str, loss: Tensor) -> Tensor:
        """One step down the loss; the gradient's norm."""
        self.networks.zero_grad()
        loss.backward()
        clip = self.config.clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.networks.trains[name], clip)
        self.optimizers[name].step()
        return norm


if __name__ == "__main__":
    main()
