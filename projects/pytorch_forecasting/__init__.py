"""pytorch-forecasting: its tutorials on N-BEATS, the temporal fusion transformer and DeepAR."""
