"""Photon Monte Carlo."""
