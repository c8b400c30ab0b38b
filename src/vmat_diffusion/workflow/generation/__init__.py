"""Plans drawn as samples, and the training of what draws them."""
