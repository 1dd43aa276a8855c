"""The model and what lies on it: masks, summary, recalibration, frame, copies."""
