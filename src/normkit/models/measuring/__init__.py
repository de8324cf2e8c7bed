"""What passes through a model, measured by channel; and the model left as it was."""
