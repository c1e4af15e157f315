"""Prefix-tuning sweeps in which all trials share one frozen model."""
