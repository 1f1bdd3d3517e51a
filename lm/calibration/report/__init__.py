"""A comparison as a page, pictures and sentences."""
