"""Types of arguments that several commands share."""

import argparse


def natural(text: str) -> int:
    """A number from zero on."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value
