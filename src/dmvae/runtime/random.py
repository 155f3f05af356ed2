"""All randomness of a run is a function of (seed, stage, step), and never of what happened before.

So a resumed run draws the same numbers, and the number of ranks does not change them, where they are drawn by
`Random`'s own methods.
"""

from __future__ import annotations

import hashlib
from typing import SupportsIndex

import torch
from torch import Tensor

from dmvae.runtime import distributed


def seed_of(*key: object) -> int:
    """A 63-bit seed from any printable key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def seed_globally(seed: int, device: torch.device) -> None:
    """Seed the generators that torch draws from where it is given none: the CPU's and that of `device`.

    The numbers are those after torch.manual_seed, which takes a millisecond: it writes a stack trace for each kind of
    device that is not here."""
    torch.default_generator.manual_seed(seed)
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).manual_seed(seed)


class Random(torch.Generator):
    """The randomness of one step: what is called `rng` in this package.

    Its methods `normal`, `uniform` and `integers` draw for the whole batch of all ranks and return this rank's part, so
    that the number of ranks does not change the numbers. Used as a torch.Generator it differs between ranks. What all
    ranks shall have alike, such as directions onto which a loss projects, comes from the generator `shared`:
    `torch.randn(d, k, generator=rng.shared, device=rng.device)`.

    part: (i, k) for part i of k, where a rank takes its share of the batch in k parts one after another. The parts
    draw what k times as many ranks would.
    """

    def __new__(cls, *key: object, device: torch.device | str = "cpu", part: tuple[int, int] = (0, 1)) -> Random:
        return super().__new__(cls, device=device)  # type: ignore[call-arg]

    def __init__(self, *key: object, device: torch.device | str = "cpu", part: tuple[int, int] = (0, 1)) -> None:
        self.key = key
        self._seat(distributed.rank() * part[1] + part[0], distributed.world_size() * part[1])
        self.shared = torch.Generator(device).manual_seed(seed_of(*key))
        self._cpu: Random | None = self if self.device.type == "cpu" else None

    def _seat(self, place: int, parts: int) -> None:
        self.place, self.parts = place, parts
        super().manual_seed(seed_of(*self.key, "rank", place))

    def manual_seed(self, seed: int) -> Random:
        """As torch.Generator's; it also seeds what the methods draw from."""
        for generator in self._all():
            torch.Generator.manual_seed(generator, seed)
        return self

    def get_state(self) -> Tensor:
        """The state of all generators that it draws from, uint8."""
        return torch.cat([torch.Generator.get_state(generator) for generator in self._all()])

    def set_state(self, new_state: Tensor) -> Random:
        """Continue from what `get_state` returned."""
        sizes = [len(torch.Generator.get_state(generator)) for generator in self._all()]
        for generator, state in zip(self._all(), new_state.split(sizes), strict=True):
            torch.Generator.set_state(generator, state.clone())
        return self

    def _all(self) -> list[torch.Generator]:
        beside = [] if self.device.type == "cpu" else self.on_cpu()._all()
        return [self, self.shared, *beside]

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        return _remade, (self.key, str(self.device), self.place, self.parts, self.get_state())

    @classmethod
    def alone(cls, *key: object, device: torch.device | str = "cpu") -> Random:
        """Randomness as a single process draws it, for what one rank does by itself, or all do alike."""
        made = cls(*key, device=device)
        made._seat(0, 1)
        return made

    @classmethod
    def of(cls, generator: torch.Generator | None, device: torch.device | str = "cpu") -> Random:
        """Randomness seeded by one draw from a plain generator; None is torch's global one."""
        if isinstance(generator, Random):
            return generator
        where = generator.device if generator is not None else "cpu"
        return cls(int(torch.randint(2**62, (), generator=generator, device=where)), device=device)

    def on_cpu(self) -> Random:
        """The same step's randomness, drawn on the CPU whatever device the networks are on. Every call returns the
        same object, so numbers go on from call to call."""
        if self._cpu is None:
            self._cpu = Random(*self.key)
            self._cpu._seat(self.place, self.parts)
        return self._cpu

    def normal(self, *shape: int) -> Tensor:
        """Standard normal [n, ...], float32."""
        return self._mine(torch.randn(self._whole(shape), generator=self.shared, device=self.device), shape[0])

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), [n, ...], float32."""
        return self._mine(torch.rand(self._whole(shape), generator=self.shared, device=self.device), shape[0])

    def integers(self, high: int, n: int) -> Tensor:
        """Uniform in 0 .. high - 1, int64 [n]."""
        return self._mine(torch.randint(high, self._whole((n,)), generator=self.shared, device=self.device), n)

    def _whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] * self.parts, *shape[1:])

    def _mine(self, x: Tensor, n: int) -> Tensor:
        return x[self.place * n : (self.place + 1) * n]


def _remade(key: tuple[object, ...], device: str, place: int, parts: int, state: Tensor) -> Random:
    """A copy, for pickle and deepcopy."""
    made = Random(*key, device=device)
    made._seat(place, parts)
    return made.set_state(state)
