"""What the compiler for TPUs makes of a training step."""
