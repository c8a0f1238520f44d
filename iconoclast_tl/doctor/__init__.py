"""Doctor: checks that show whether the tool's edits are exact on a model, the same for tests and for users."""
