"""Encoded data on disk."""
