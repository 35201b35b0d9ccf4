"""The smallest plain LoRA whose metric stays within a tolerance of the adapter that it is cut from."""
