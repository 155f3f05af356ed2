"""`python -m dmvae`."""

from dmvae.cli import main

main()
