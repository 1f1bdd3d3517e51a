"""Sets of next tokens at full vocabulary."""
