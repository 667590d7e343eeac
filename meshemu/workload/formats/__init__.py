"""Number formats: what they are, numbers rounded to them, and where in a training step that happens."""
