"""LR-LoRA as a tuner inside PEFT's source tree, made of lrlora's own sources: `make upstream`, docs/upstream.md."""
