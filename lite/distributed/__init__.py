"""The LITE optimizers on several ranks: DDP, FSDP2 and HSDP. Loaded when an optimizer needs it, not before."""
