"""The dose model: encoding of a case, network, diffusion process, prediction, goal guidance, domain."""
