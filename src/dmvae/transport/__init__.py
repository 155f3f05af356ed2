"""Distances between two sets of samples, differentiable in the first.

Each is a pure function of latents z, samples y of a reference and, where it draws random numbers, a generator `rng`. It
returns a scalar whose gradient moves z towards the reference. It keeps no state: a caller that has a queue of recent
latents appends it to z, without gradient (`dmvae.matching.between`). A `dmvae.runtime.random.Random` as `rng` differs
between ranks: each rank then has its own slices, and their average has more of them. `arrival` and `two_sample` measure
alone, without gradient.

Shapes: vectors z [n, d] and y [m, d]. `dmvae.transport.views` makes them of latents [n, C, H, W].
"""
