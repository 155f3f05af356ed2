"""What everything stands on: ranks, files, hashes, randomness, precision, weights, the console."""
