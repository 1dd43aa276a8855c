"""deeptab: estimators in the manner of scikit-learn, which restore their best weights after the fit."""
