"""What is exported: methods, signatures, sizes, constants, samples."""
