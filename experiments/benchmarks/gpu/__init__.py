"""What the compiler for GPUs makes of a step."""
