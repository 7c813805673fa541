"""Calibration: choosing the threshold on a dev set, and what the gate is worth there."""
