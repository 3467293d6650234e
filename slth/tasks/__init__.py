"""What targets are trained on and tickets are measured on: one file each."""
