"""Molecular dynamics with a force field."""

from .classical import MDReport, run_md

__all__ = ["MDReport", "run_md"]
