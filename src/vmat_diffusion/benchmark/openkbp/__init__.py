"""`benchmark openkbp`: predicted doses of OpenKBP patients and the challenge's scores."""
