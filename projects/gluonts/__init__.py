"""GluonTS: estimators that train a predictor and restore its best weights themselves."""
