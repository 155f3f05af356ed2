"""Networks that belong to no family of parts, such as the velocity network and EfficientNet, and their base classes."""
