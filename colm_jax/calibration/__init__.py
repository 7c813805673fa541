"""Calibration: choose the threshold on a dev set and measure the gate there."""
