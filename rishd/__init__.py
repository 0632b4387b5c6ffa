"""The application: validate the theory's claims, simulate flows, pre-train models, write reports."""
