"""How far an atom's environment is from the training set, told from a model's last-layer features. Numpy only."""
