"""Time and memory of LR-LoRA beside other methods: `make bench`. A timing is never a test, and no test imports this."""
