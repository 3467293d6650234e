"""What the commands measure: a folder each."""
