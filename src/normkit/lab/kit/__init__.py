"""What experiments are made of: networks, training, and what is measured on the way."""
