"""The small worlds that the shipped model is trained and evaluated on. Start with `tools.worlds.sample.draw`."""
