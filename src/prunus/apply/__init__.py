"""Acting on a plan: cutting a model and proving the result."""
