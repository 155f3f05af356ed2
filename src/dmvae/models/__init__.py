"""Networks that belong to no family: the velocity network, the discriminator, EfficientNet, and their base."""
