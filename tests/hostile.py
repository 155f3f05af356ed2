"""What a file of somebody else's may hold, and what a disk may make of one's own."""


class Runs:
    """Unpickled, it makes a file `ran` in the working folder."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def flip(path, place=-1):
    """One bit of the file is another."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
