"""darts: forecasting models behind ``fit`` and ``predict``, which make their own module and Trainer."""
