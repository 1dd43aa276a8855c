"""lightly: BYOL, whose momentum encoder is a frozen copy of the backbone."""
