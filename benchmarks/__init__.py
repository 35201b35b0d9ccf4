"""Time and memory of LR-LoRA beside other methods: `make bench`. A timing is never a test: tests only read results."""
