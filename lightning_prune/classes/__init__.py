"""A classifier cut to some of its classes."""
