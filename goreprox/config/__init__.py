"""Checked values."""
