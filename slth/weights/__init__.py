"""Random weights: how each is drawn (inits), and the record by which it is drawn again (recipes)."""
