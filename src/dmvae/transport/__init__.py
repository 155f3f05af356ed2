"""Distances between two sets of samples, differentiable in the first.

Each is a pure function of latents z, samples y of a reference and, where it draws random numbers, a generator `rng`; it
returns a scalar whose gradient moves z towards the reference. No teacher, no student, no state: who keeps a queue of
recent latents joins it to z, without gradient (`dmvae.matching.between`). A `dmvae.runtime.random.Random` given as
`rng` differs between ranks: each rank then has its own slices, and their average has more of them.

Shapes: vectors z [n, d] and y [m, d]. `dmvae.transport.views` makes them of latents [n, C, H, W].
"""
