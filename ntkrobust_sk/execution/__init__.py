"""How a model is run: devices, tiles of rows, loops, random keys. Knows no kernel and no attack."""
