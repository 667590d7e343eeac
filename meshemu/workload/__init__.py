"""From a torch module to the work of every device: capture, sharding rules, plans, and the Program that results."""
