"""Studies of hyperparameter tuning."""
