"""Tasks and data to train targets on and to evaluate tickets on."""
