"""Jobs: admitted, posted, followed, and what they leave."""
