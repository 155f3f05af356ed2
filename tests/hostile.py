"""What a file of somebody else's may hold."""


class Runs:
    """Unpickled, it makes a file `ran` in the working folder."""

    def __reduce__(self):
        return (open, ("ran", "w"))
