"""Calibration: choosing the threshold on a dev set."""
