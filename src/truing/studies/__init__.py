"""What joins stages. Nothing else may."""
