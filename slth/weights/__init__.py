"""Random weights: how they are drawn (inits), and the records by which they can be drawn again (recipes)."""
