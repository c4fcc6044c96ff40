"""The user's own trainer: Lightning, transformers' `Trainer`, Accelerate; one file each, imported by name."""
