"""When: everything that imports Lightning."""
