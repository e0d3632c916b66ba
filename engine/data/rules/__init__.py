"""What can be wrong with examples: one small file for each family of rules. `engine.data.lint` runs them and offers the fixes."""
