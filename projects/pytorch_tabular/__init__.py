"""PyTorch Tabular: a TabularModel makes module, data module and Trainer from configurations."""
