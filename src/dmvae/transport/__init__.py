"""Distances between two sets of samples, differentiable in the first.

Each is a pure function of latents z, samples y of a reference and, where it draws, a generator `rng`; it returns a
scalar whose gradient moves z towards the reference. No teacher, no student, no state: what is remembered from turn to
turn (a queue of recent latents) is the caller's and is passed in. `dmvae.runtime.random.Random` as a torch.Generator
differs between ranks, so that each rank has slices of its own and their average has more of them.

Shapes: z [n, C, H, W] latents or [n, d] vectors; y [m, ...] likewise; q queue [k, ...] likewise.
"""
