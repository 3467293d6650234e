"""The measurements of the commands, one folder per study."""
