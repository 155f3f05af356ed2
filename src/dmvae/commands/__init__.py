"""What the commands do; `dmvae.cli` only finds them."""
