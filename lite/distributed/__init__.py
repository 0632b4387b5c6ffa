"""The LITE optimizers on several ranks: DDP and any layout of DTensor's. Loaded when one needs it."""
