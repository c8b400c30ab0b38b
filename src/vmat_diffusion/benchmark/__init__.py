"""Benchmarks that users can run: predicted doses and plans of OpenKBP patients, and the cases of TG-119."""
