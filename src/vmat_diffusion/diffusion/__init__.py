"""The dose model: a case and its goals as the prompt, dose distributions as the samples."""
