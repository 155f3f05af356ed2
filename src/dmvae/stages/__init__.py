"""The stages, in order. A stage is a module with

    NAME       its name: a recipe's section, a subcommand
    READS      the stages whose folders it may read (those that a variant has)
    USES       the recipe's shared sections that it depends on, besides `data` and `seed`
    SPLITS     the splits of the data set that it reads, where it is not the training images alone

and either `build` and `updates` (a training stage, see training/contract.py) or `run` (any other).
"""

from dmvae.stages import decoder, encoder, evaluate, generator, latents, matching, reference, sample, tokenizer

STAGES = (encoder, tokenizer, reference, matching, decoder, latents, generator, sample, evaluate)
