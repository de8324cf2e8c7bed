"""The only code that touches every element."""
