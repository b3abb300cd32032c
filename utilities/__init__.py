"""Plain structures and helpers that every other folder may import, and that import none of them."""
