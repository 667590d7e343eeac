"""Real tensors: every device's maths, halos, reductions and updates, executed by the ranks that emulate them."""
