"""The main job: train a network on real digits, check and time another against stock PyTorch, report it all."""
